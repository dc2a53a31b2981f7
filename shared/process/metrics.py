"""What every service's registry says of the service itself."""

from prometheus_client import Gauge

# The port adds the label `run` to all others as well; this one is there from the start.
RUN_INFO = Gauge("routershift_run_info", "1, labelled with the run that this service serves", ["run"])
GPUS = Gauge("routershift_gpus", "GPUs that this service computes on")
GPU_HOUR_PRICE = Gauge("routershift_gpu_hour_price", "`run.gpu_hour_price`")
