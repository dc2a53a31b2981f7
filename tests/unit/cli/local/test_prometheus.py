"""What Prometheus is told of a local run."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from services.cli.local.prometheus import scrape_config

TARGETS = {"generation": "127.0.0.1:9101", "learner": "[::1]:9103"}


def test_every_service_is_a_job_of_its_run() -> None:
    config = yaml.safe_load(scrape_config("one", TARGETS))
    assert config.keys() == {"scrape_configs"}, "scrape_config_files take no other part"
    assert [job["job_name"] for job in config["scrape_configs"]] == ["one/generation", "one/learner"]
    assert [job["static_configs"] for job in config["scrape_configs"]] == [
        [{"targets": ["127.0.0.1:9101"], "labels": {"job": "generation", "run": "one"}}],
        [{"targets": ["[::1]:9103"], "labels": {"job": "learner", "run": "one"}}],
    ]


@pytest.mark.parametrize("run", ["1.5", "2026", "null", "a.b_c-d"])
def test_a_run_is_a_text_whatever_its_name(run: str) -> None:
    for job in yaml.safe_load(scrape_config(run, TARGETS))["scrape_configs"]:
        assert job["static_configs"][0]["labels"]["run"] == run


def test_jobs_have_the_names_that_the_deployment_gives_them(repository: Path) -> None:
    deployed = (repository / "deploy/prometheus/prometheus.yml").read_text()
    assert set(re.findall(r"job_name: (\w+)", deployed)) >= TARGETS.keys()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH")
def test_promtool_takes_it(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(scrape_config("one", TARGETS))
    ran = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
