"""What a plot shows, as data: values, labels and units. How it looks is decided in `drawing`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cong.report.tables import Estimate


@dataclass(frozen=True)
class Axis:
    """A labelled axis; the unit appears in brackets after the label."""

    label: str
    unit: str = ""
    is_log: bool = False
    # Both ends, or None to fit the data.
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Reference:
    """A fixed value to compare with, drawn as a dashed line: a floor, a ceiling, a baseline."""

    label: str
    value: float


@dataclass(frozen=True)
class Line:
    """One curve; `low` and `high`, given together, are its confidence band."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    def __post_init__(self) -> None:
        assert (self.low is None) == (self.high is None), f"{self.label}: a band needs both ends"
        for values in (self.y, self.low, self.high):
            assert values is None or len(values) == len(self.x), f"{self.label}: {len(self.x)} x, {len(values)} y"


@dataclass(frozen=True)
class LinePlot:
    """Curves over a common axis."""

    lines: Sequence[Line]
    x: Axis
    y: Axis
    references: Sequence[Reference] = ()
    title: str = ""
    # Few measured points get markers, a training curve gets none.
    has_markers: bool = False
    # Weight of the past in an exponential average drawn over the faint raw curve; 0 = disabled.
    smoothing: float = 0.0


@dataclass(frozen=True)
class Bar:
    """One compared thing; bars with the same group share a colour."""

    label: str
    value: Estimate | float
    group: str = ""


@dataclass(frozen=True)
class BarPlot:
    """Horizontal bars with their intervals, first on top."""

    bars: Sequence[Bar]
    value: Axis
    references: Sequence[Reference] = ()
    title: str = ""
    # Format of the numbers beside the bars.
    format: str = ".2f"


@dataclass(frozen=True)
class ScatterPlot:
    """Points with their Pearson correlation, and the mean y of each quantile of x."""

    points_x: Sequence[float]
    points_y: Sequence[float]
    x: Axis
    y: Axis
    title: str = ""
    # 4 = quartiles; 0 = disabled.
    num_quantiles: int = 4

    def __post_init__(self) -> None:
        assert len(self.points_x) == len(self.points_y), f"{len(self.points_x)} x, {len(self.points_y)} y"


@dataclass(frozen=True)
class Histogram:
    """Distributions of several groups overlaid, as the share of each group, so that sizes of groups do not matter."""

    groups: Mapping[str, Sequence[float]]
    x: Axis
    title: str = ""
    num_bins: int = 30


@dataclass(frozen=True)
class Panels:
    """Small multiples: several plots in one figure."""

    plots: "Sequence[LinePlot | BarPlot | ScatterPlot | Histogram]"
    num_columns: int = 3
    is_y_shared: bool = False

    def __post_init__(self) -> None:
        assert self.plots, "small multiples need a plot"
        assert self.num_columns > 0, f"num_columns is {self.num_columns}, must be positive"


Plot = LinePlot | BarPlot | ScatterPlot | Histogram | Panels
