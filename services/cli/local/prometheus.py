"""A configuration of Prometheus for the services of one run on this machine."""

from collections.abc import Mapping

FILE = "prometheus.yml"
_EVERY = "5s"  # the rules and dashboards of deploy/ are made for it


def scrape_config(run: str, targets: Mapping[str, str]) -> str:
    """YAML with a job for each service; its series have the labels `job`, the service, and `run`, as services say it.

    Prometheus takes it as its own configuration, and that of many runs as `scrape_config_files`: so it has no other
    part, and names of jobs that no other run has.

    Args:
        run: id of the run.
        targets: HOST:PORT of the metrics of each service.
    """
    jobs = "".join(
        f"  - job_name: {run}/{service}\n"
        f"    scrape_interval: {_EVERY}\n"
        "    honor_labels: true\n"  # what answers at the port of a run that has ended may be another
        "    static_configs:\n"
        f'      - targets: ["{target}"]\n'
        f'        labels: {{job: {service}, run: "{run}"}}\n'
        for service, target in targets.items()
    )
    return f"# Written at every start of the run: prometheus --config.file={FILE}\nscrape_configs:\n{jobs}"
