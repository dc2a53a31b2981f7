"""Metrics of the curriculum: what it fed and measured, and the state of the run's streams and ledger."""

from prometheus_client import Counter, Gauge

PROMPTS = Counter("routershift_curriculum_prompts_total", "Prompts admitted")
CHOICES = Counter(
    "routershift_curriculum_choices_total",
    "Problems whose turn it was: taken, or why they were passed over",
    ["choice"],
)
WAIT_SECONDS = Counter("routershift_curriculum_wait_seconds_total", "Time spent waiting to admit a prompt", ["reason"])
for _reason in ("tickets", "full", "finished"):
    WAIT_SECONDS.labels(_reason)  # from 0 on: Prometheus sees no increase from nothing to 1
TICKETS = Gauge("routershift_curriculum_tickets_held", "Groups that hold a ticket")
ACCURACY = Gauge(
    "routershift_curriculum_held_out_accuracy",
    "Share of correct responses in the last evaluation of a set",
    ["set", "decoding"],
)
PASS_AT_K = Gauge(
    "routershift_curriculum_held_out_pass_at_k",
    "Chance that one of k sampled responses is correct, in the last evaluation of a set",
    ["set", "k"],
)
TURNS = Gauge(
    "routershift_curriculum_held_out_turns",
    "Turns of the model in a sampled response, in the last evaluation of a set",
    ["set"],
)
EVALUATED_VERSION = Gauge("routershift_curriculum_evaluated_version", "Policy version of the last evaluation")
BEST_VERSION = Gauge(
    "routershift_curriculum_best_version",
    "Evaluated policy version of the highest accuracy when sampled, on the first held-out set",
)
BEST_ACCURACY = Gauge(
    "routershift_curriculum_best_accuracy", "Share of correct responses of the best version when sampled"
)
EVALUATIONS = Counter("routershift_curriculum_evaluations_total", "Evaluations", ["outcome"])
STREAM_ENTRIES = Gauge("routershift_stream_entries", "Entries of a stream, those being worked on included", ["stream"])
STREAM_BYTES = Gauge("routershift_stream_bytes", "Payload bytes of a stream", ["stream"])
STREAM_AGE = Gauge("routershift_stream_oldest_entry_seconds", "Age of a stream's oldest entry", ["stream"])
DEAD_LETTERS = Gauge("routershift_stream_dead_letters", "Entries of the dead-letter stream")
REDIS_MEMORY = Gauge("routershift_redis_memory_bytes", "Memory that Redis uses")
REDIS_LIMIT = Gauge("routershift_redis_memory_limit_bytes", "`maxmemory` of Redis; 0 for none")
LEDGER = Gauge("routershift_ledger_trajectories", "Trajectories of the run by state", ["state"])
