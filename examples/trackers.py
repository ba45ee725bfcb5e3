"""Trackers for `--tracker=examples.trackers:mlflow` and `--tracker=examples.trackers:wandb`.

Each gets the settings and the folder of the run, then its numbers and the files it leaves behind.
A run that goes on is the same run there too. The packages are not installed with this one:
`pip install mlflow` or `pip install wandb`; where they write to is theirs to say
(MLFLOW_TRACKING_URI, `wandb login`).
"""

import pathlib


class mlflow:
    """Writes to MLflow: an experiment named after the folder above the run's."""

    def __init__(self, config, run_dir):
        from mlflow.tracking import MlflowClient

        self._client, run_dir = MlflowClient(), pathlib.Path(run_dir)
        there = self._client.get_experiment_by_name(run_dir.parent.name)
        known = there.experiment_id if there else None
        known = known or self._client.create_experiment(run_dir.parent.name)
        query = f"tags.run_dir = '{run_dir}'"
        found = self._client.search_runs([known], query, max_results=1)
        if found:
            self._run = found[0].info.run_id
        else:
            tags = {"run_dir": str(run_dir)}
            created = self._client.create_run(known, run_name=run_dir.name, tags=tags)
            self._run = created.info.run_id
            for name, value in config.items():
                self._client.log_param(self._run, name, str(value)[:500])

    def scalars(self, step, values):
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def artifact(self, path):
        self._client.log_artifact(self._run, path)

    def close(self):
        self._client.set_terminated(self._run)


class wandb:
    """Writes to Weights & Biases: a run of the project unet_core."""

    def __init__(self, config, run_dir):
        import hashlib

        import wandb

        run_id = hashlib.sha256(run_dir.encode()).hexdigest()[:16]
        how = {"project": "unet_core", "name": pathlib.Path(run_dir).name, "config": config}
        self._run = wandb.init(id=run_id, resume="allow", **how)

    def scalars(self, step, values):
        self._run.log(values, step=step)

    def artifact(self, path):
        self._run.save(path, base_path=str(pathlib.Path(path).parent), policy="now")

    def close(self):
        self._run.finish()
