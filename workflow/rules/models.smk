rule prepare_model:
    """Build or load one base model, train it on a data set, save it."""
    input:
        inputs_of(f"{MODEL}/training.json", data_files),
    output:
        weights=f"{MODEL}/model.safetensors",
        config=f"{MODEL}/config.json",
        tokenizer=f"{MODEL}/tokenizer.json",
        training=f"{MODEL}/training.json",
        steps=f"{MODEL}/training.parquet",
    log:
        f"{RESULTS}/logs/prepare_model/{{base_model}}.log",
    priority: 10
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        gpu=asks("prepare_model", "gpu"),
        mem_mb=asks("prepare_model", "mem_mb"),
        runtime=asks("prepare_model", "runtime"),
    params:
        plan=FROZEN_PLAN,
        run=a_run,
    message:
        "base model {wildcards.base_model}"
    shell:
        "python -m grace_bench prepare-model --plan {params.plan:q} --run {params.run:q} > {log} 2>&1"


rule baseline:
    """Predict every role with the unedited model, once for all editors."""
    input:
        inputs_of(f"{BASELINE}/baseline.json", data_files, model_files),
    output:
        predictions=f"{BASELINE}/predictions.parquet",
        averages=f"{BASELINE}/baseline.json",
    log:
        f"{RESULTS}/logs/baseline/{{base_model}}.log",
    priority: 10
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        gpu=asks("baseline", "gpu"),
        mem_mb=asks("baseline", "mem_mb"),
        runtime=asks("baseline", "runtime"),
    params:
        plan=FROZEN_PLAN,
        run=a_run,
    message:
        "unedited {wildcards.base_model}"
    shell:
        "python -m grace_bench baseline --plan {params.plan:q} --run {params.run:q} > {log} 2>&1"
