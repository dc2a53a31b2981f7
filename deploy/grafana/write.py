"""Writes the dashboards: `make dashboards`. The JSON is committed; a test holds it equal."""

from pathlib import Path

from deploy.grafana import data_plane, episodes, fleet, generation, learner, overview, routers

FOLDER = Path(__file__).parent / "dashboards"

DASHBOARDS = {
    "fleet": fleet.fleet,
    "overview": overview.overview,
    "routers": routers.routers,
    "data-plane": data_plane.data_plane,
    "generation": generation.generation,
    "episodes": episodes.episodes,
    "learner": learner.learner,
}


def main() -> None:
    for name, make in DASHBOARDS.items():
        (FOLDER / f"{name}.json").write_text(make())


if __name__ == "__main__":
    main()
