# The workflow is workflow/Snakefile; `snakemake` in the clone's root finds this one.
include: "workflow/Snakefile"


# `include` leaves the default target to the file that includes.
workflow.default_target = rules.all.rule.name
