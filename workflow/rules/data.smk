rule prepare_data:
    """Write one data set's roles as Parquet, with a manifest."""
    input:
        inputs_of(f"{DATA}/manifest.json"),
    output:
        roles=expand("{folder}/{role}.parquet", folder=DATA, role=ROLES),
        manifest=f"{DATA}/manifest.json",
    log:
        f"{RESULTS}/logs/prepare_data/{{dataset}}.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=asks("prepare_data", "gpu"),
        mem_mb=asks("prepare_data", "mem_mb"),
        runtime=asks("prepare_data", "runtime"),
    params:
        plan=FROZEN_PLAN,
        run=a_run,
    message:
        "data set {wildcards.dataset}"
    shell:
        "python -m grace_bench prepare-data --plan {params.plan:q} --run {params.run:q} > {log} 2>&1"
