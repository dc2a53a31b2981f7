"""What every service's registry says of the service itself."""

from prometheus_client import Gauge

# Not a label of every metric: which run a target serves is known before it is scraped, and joined to its series.
RUN_INFO = Gauge("routershift_run_info", "1, labelled with the run that this service serves", ["run"])
