"""Snakemake that looks at its Slurm jobs every second, so that tests need not wait for it.

The plugin looks 10 s later each time that nothing has ended. Nothing else is changed here.
"""

import asyncio
import sys

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor


async def sleep(self) -> None:
    await asyncio.sleep(1)


RemoteExecutor.sleep = sleep

if __name__ == "__main__":
    sys.argv[0] = "snakemake"
    sys.exit(main())
