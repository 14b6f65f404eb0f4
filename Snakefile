# grace-bench: suite -> data, models, runs -> summary -> MLflow, tables, figures, report.
#
#   snakemake --cores 2                                            the default suite
#   snakemake --cores 2 --configfile config/suites/smoke.yaml      another suite
#   snakemake --cores 2 --config seeds=[0]                         a setting of the default suite
#   snakemake tables                                               tables from the Parquet files
from snakemake.utils import min_version

min_version("9.25")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/edit.smk"
include: "workflow/rules/results.smk"


onstart:
    say_how_slurm_is()


onerror:
    print(
        "A job failed. Its log, named above, ends with the reason; --show-failed-logs shows it here."
    )


rule all:
    """Everything: runs, summary, tables, figures, report and MLflow."""
    default_target: True
    input:
        rules.tables.output,
        rules.figures.output,
        rules.paper_figures.output,
        TOY,
        rules.report.output,
        rules.track.output,
