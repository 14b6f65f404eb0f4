rule prepare_editor:
    """Make what an editor needs before any run: a trained network, statistics."""
    input:
        train=f"{DATA}/train.parquet",
        manifest=f"{DATA}/manifest.json",
        training=f"{MODEL}/training.json",
        weights=f"{MODEL}/model.safetensors",
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
        spec=assets_spec,
    message:
        "{wildcards.assets} for {wildcards.model} on {wildcards.dataset}"
    shell:
        "python -m grace_bench prepare-editor --spec {params.spec:q} > {log} 2>&1"


rule edit:
    """Do one run: feed the stream of edits to one editor on one model."""
    input:
        roles=expand("{folder}/{role}.parquet", folder=DATA, role=ROLES),
        manifest=f"{DATA}/manifest.json",
        training=f"{MODEL}/training.json",
        weights=f"{MODEL}/model.safetensors",
        baseline=f"{BASELINE}/baseline.json",
        assets=run_assets,
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
        spec=run_spec,
    message:
        "{wildcards.editor} ({wildcards.variant}) on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python -m grace_bench edit --spec {params.spec:q} > {log} 2>&1"
