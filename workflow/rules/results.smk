rule plan:
    """Put the plan that the jobs read beside their results, where aggregation reads it."""
    input:
        mark(PLAN_OUTDATED),
    output:
        PLAN,
    log:
        f"{RESULTS}/logs/plan.log",
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
    params:
        plan=FROZEN_PLAN,
    shell:
        "cp {params.plan:q} {output:q} 2> {log}"


rule summarise:
    """Gather all runs into one summary with intervals."""
    input:
        unpack(run_files),
        # A run that is missing is no reason for Snakemake to do it, until this job wants it.
        mark=mark(OUTDATED),
        plan=PLAN,
    output:
        summary=f"{RESULTS}/summary.parquet",
        curves=f"{RESULTS}/curves.parquet",
    log:
        f"{RESULTS}/logs/summarise.log",
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        folder=subpath(output.summary, parent=True),
    shell:
        "python -m grace_bench summarise --plan {input.plan:q} --output {params.folder:q} > {log} 2>&1"


rule tables:
    """Write LaTeX, CSV and Markdown tables from the summary."""
    input:
        summary=f"{RESULTS}/summary.parquet",
    output:
        latex=f"{RESULTS}/tables/main.tex",
        csv=f"{RESULTS}/tables/main.csv",
        markdown=f"{RESULTS}/tables/main.md",
    log:
        f"{RESULTS}/logs/tables.log",
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        folder=subpath(input.summary, parent=True),
        added=plugins(TABLES, MEASURES.added),
    shell:
        "python -m grace_bench tables --summary {params.folder:q} --output {params.folder}/tables > {log} 2>&1"


rule figures:
    """Write figures as PDF and PNG from the summary."""
    input:
        summary=f"{RESULTS}/summary.parquet",
        curves=f"{RESULTS}/curves.parquet",
    output:
        overview=f"{RESULTS}/figures/overview.png",
    log:
        f"{RESULTS}/logs/figures.log",
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        folder=subpath(input.summary, parent=True),
        added=plugins(FIGURES, MEASURES.added),
    shell:
        "python -m grace_bench figures --summary {params.folder:q} --output {params.folder}/figures > {log} 2>&1"


rule paper_figures:
    """Draw the paper's Figs. 3 to 6, those that the runs can show."""
    input:
        plan=PLAN,
        summary=f"{RESULTS}/summary.parquet",
        curves=f"{RESULTS}/curves.parquet",
    output:
        index=f"{RESULTS}/paper-figures/figures.json",
    log:
        f"{RESULTS}/logs/paper_figures.log",
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        folder=subpath(input.summary, parent=True),
    shell:
        "python -m grace_bench paper-figures --plan {input.plan:q} --summary {params.folder:q}"
        " --output {params.folder}/paper-figures > {log} 2>&1"


rule toy:
    """Draw the paper's toy (Fig. 2); it needs no run."""
    output:
        png=f"{RESULTS}/paper-figures/toy.png",
        pdf=f"{RESULTS}/paper-figures/toy.pdf",
        csv=f"{RESULTS}/paper-figures/toy.csv",
    log:
        f"{RESULTS}/logs/toy.log",
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        folder=subpath(output.png, parent=True),
    shell:
        "python -m grace_bench toy --output {params.folder:q} > {log} 2>&1"


rule report:
    """Write one HTML file with every table and figure."""
    input:
        summary=f"{RESULTS}/summary.parquet",
        figures=rules.figures.output,
        paper_figures=rules.paper_figures.output,
        toy=TOY,
    output:
        f"{RESULTS}/report.html",
    log:
        f"{RESULTS}/logs/report.log",
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        folder=subpath(input.summary, parent=True),
        added=plugins(TABLES, FIGURES, MEASURES.added),
    shell:
        "python -m grace_bench report --summary {params.folder:q} --output {output:q} > {log} 2>&1"


rule track:
    """Export all runs to MLflow, from one process; doing it again changes nothing."""
    input:
        plan=PLAN,
        summary=f"{RESULTS}/summary.parquet",
        tables=rules.tables.output,
        figures=rules.figures.output,
        paper_figures=rules.paper_figures.output,
        toy=TOY,
        report=rules.report.output,
    output:
        f"{RESULTS}/mlflow-export.json",
    log:
        f"{RESULTS}/logs/track.log",
    localrule: True
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        folder=subpath(input.summary, parent=True),
    shell:
        "python -m grace_bench track --plan {input.plan:q} --summary {params.folder:q} > {log} 2>&1"
