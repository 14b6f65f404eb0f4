"""The tasks: one file each, named like the task, with `TASK` in it."""
