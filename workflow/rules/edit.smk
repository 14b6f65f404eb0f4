rule prepare_editor:
    """Make what an editor needs before any run: a trained network, statistics."""
    input:
        inputs_of(f"{ASSETS}/assets.json", data_files, model_files),
    output:
        f"{ASSETS}/assets.json",
    log:
        f"{ASSETS}/assets.log",
    priority: 10
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        gpu=asks("prepare_editor", "gpu"),
        mem_mb=asks("prepare_editor", "mem_mb"),
        runtime=asks("prepare_editor", "runtime"),
    params:
        plan=FROZEN_PLAN,
        run=a_run,
    message:
        "{wildcards.assets} for {wildcards.base_model}"
    shell:
        "python -m grace_bench prepare-editor --plan {params.plan:q} --run {params.run:q} > {log} 2>&1"


if SUITE.bundle == 1:

    rule edit:
        """Do one run: feed the stream of edits to one editor on one model."""
        input:
            inputs_of(
                f"{RUN}/run.json",
                data_files,
                model_files,
                baseline_file,
                run_assets,
            ),
        output:
            steps=f"{RUN}/steps.parquet",
            probes=f"{RUN}/probes.parquet",
            predictions=f"{RUN}/predictions.parquet",
            run=f"{RUN}/run.json",
        log:
            f"{RUN}/run.log",
        conda:
            "../../environment.yml"
        threads: THREADS
        resources:
            gpu=asks("edit", "gpu"),
            mem_mb=asks("edit", "mem_mb"),
            runtime=asks("edit", "runtime"),
        params:
            plan=FROZEN_PLAN,
            run=a_run,
        message:
            "{wildcards.editor} ({wildcards.variant}) on {wildcards.dataset}, seed {wildcards.seed}"
        shell:
            "python -m grace_bench edit --plan {params.plan:q} --run {params.run:q} > {log} 2>&1"

else:

    rule edit_bundle:
        """Do several runs of one base model, one after the other, in one process."""
        input:
            bundle_inputs,
        output:
            BUNDLE,
        log:
            f"{RESULTS}/logs/edit_bundle/{{base_model}}/{{bundle}}.log",
        conda:
            "../../environment.yml"
        threads: THREADS
        resources:
            gpu=asks("edit", "gpu"),
            mem_mb=asks("edit", "mem_mb"),
            runtime=bundle_runtime,
        params:
            plan=FROZEN_PLAN,
            runs=bundle_runs,
        message:
            "runs of {wildcards.base_model}, bundle {wildcards.bundle}"
        shell:
            "python -m grace_bench edit-bundle --plan {params.plan:q} --runs {params.runs} --output {output:q} > {log} 2>&1"

    rule edit:
        """Take one run out of its bundle: Snakemake wants to see its files come one by one."""
        input:
            # A bundle that got one run more leaves the others as they are.
            inputs_of(f"{RUN}/run.json", bundle_of_run),
        output:
            steps=f"{RUN}/steps.parquet",
            probes=f"{RUN}/probes.parquet",
            predictions=f"{RUN}/predictions.parquet",
            run=f"{RUN}/run.json",
        log:
            # Not run.log, which is the bundle's: Snakemake removes a rule's log before each job.
            f"{RUN}/bundle.log",
        localrule: True
        conda:
            "../../environment.yml"
        threads: 1
        params:
            folder=subpath(output.run, parent=True),
        shell:
            "cp -lf {params.folder:q}/kept/* {params.folder:q}/ 2>> {log}"
            " || cp -pf {params.folder:q}/kept/* {params.folder:q}/ 2>> {log}"
