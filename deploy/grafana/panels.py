"""What the dashboards are made of: a few kinds of panels, all asking Prometheus, in rows."""

import json
from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import dashboard as boards
from grafana_foundation_sdk.builders import heatmap, prometheus, timeseries
from grafana_foundation_sdk.builders.common import StackingConfig, VizLegendOptions
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode

PROMETHEUS = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

# Width of the grid, and how tall a panel is.
_COLUMNS, _HEIGHT = 24, 8

Panel = timeseries.Panel | heatmap.Panel


def lines(
    title: str,
    unit: str,
    queries: Mapping[str, str],
    about: str = "",
    *,
    stacked: bool = False,
    most: float | None = None,
) -> Panel:
    """Curves over time.

    Args:
        unit: one of Grafana's, such as `s`, `bytes`, `percentunit` or `short`.
        queries: PromQL by legend; `{{label}}` in a legend stands for the label's value.
        most: end of the axis, which begins at 0; without it both follow the data.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(PROMETHEUS)
        .unit(unit)
        .height(_HEIGHT)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if stacked:
        panel.stacking(StackingConfig().mode(common.StackingMode.NORMAL)).fill_opacity(60)
    if most is not None:
        panel.min(0).max(most)
    for query in _targets(queries):
        panel.with_target(query)
    return panel


def layers(title: str, unit: str, metric: str, about: str) -> Panel:
    """A heatmap of a gauge with a label `layer`: layers upwards, time to the right."""
    # Rows stand in the order of their names, so 2 becomes 02.
    padded = f'label_replace(max by (layer) ({metric}), "layer", "0$1", "layer", "([0-9])")'
    panel = (
        heatmap.Panel()
        .title(title)
        .description(about)
        .datasource(PROMETHEUS)
        .height(_HEIGHT)
        .calculate(False)
        .cell_values(heatmap.CellValues().unit(unit))
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Viridis").steps(64))
        .y_axis(heatmap.YAxisConfig().axis_label("layer"))
    )
    for query in _targets({"{{layer}}": padded}):
        panel.with_target(query)
    return panel


def quantiles(metric: str, *shares: float, by: str = "") -> dict[str, str]:
    """Queries for quantiles of a histogram; `by` names a label that is kept apart."""
    kept, legend = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    return {
        f"{legend}p{share * 100:g}": (
            f"histogram_quantile({share}, sum by ({kept}) (rate({metric}_bucket[$__rate_interval])))"
        )
        for share in shares
    }


def dashboard(
    uid: str,
    title: str,
    rows: Mapping[str, Sequence[Panel]],
    variables: Sequence[Builder[models.VariableModel]] = (),
) -> str:
    """The JSON of a dashboard: at most three panels beside each other in a row of its own title.

    A variable chooses the Prometheus; another adds label filters to every query, as for the namespace of a run.
    """
    board = (
        boards.Dashboard(title)
        .uid(uid)
        .tags(["routershift"])
        .editable()
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(boards.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(boards.AdHocVariable("filter").datasource(PROMETHEUS))
        .link(boards.DashboardLink("RouterShift").type(models.DashboardLinkType.DASHBOARDS).tags(["routershift"]))
    )
    for variable in variables:
        board.with_variable(variable)
    for name, panels in rows.items():
        board.with_row(boards.Row(name))
        for panel in panels:
            board.with_panel(panel.span(_COLUMNS // min(3, len(panels))))
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _targets(queries: Mapping[str, str]) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + i))
        for i, (legend, expression) in enumerate(queries.items())
    ]
