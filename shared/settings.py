"""Settings that every service reads: a model for each table of a recipe. `shared.recipes` loads them.

Each component's own table stands beside the code it configures.

Long because it has every table that more than one service reads.
"""

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from shared import redis_url
from shared.errors import NotFoundError
from shared.models.folder import check_folder
from shared.models.hub import fetch, parse_model
from shared.payloads.settings import PayloadSettings
from shared.sampling import MAX_SAMPLES, MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TEMPERATURE, MIN_TEMPERATURE
from shared.table import Table, Texts
from shared.tracing.settings import TracesSettings
from shared.tracking import records
from shared.tracking.trackers.settings import TrackingSettings

SERVICES = ("curriculum", "generation", "environments", "reward", "learner")


class ServerSettings(Table):
    """Where a service listens. Loopback unless told otherwise."""

    host: Annotated[str, AfterValidator(lambda host: host.strip("[]"))] = Field(
        "127.0.0.1", description="IPv4 or IPv6 address, or name, where gRPC and metrics are served; 0.0.0.0 or ::: all"
    )
    port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(0, ge=0, le=65535, description="Prometheus port; 0 takes a free one")
    drain_seconds: float = Field(20.0, gt=0, description="how long SIGTERM waits for work in progress")
    start_seconds: float = Field(
        180.0, gt=0, description="time from the start of the process to serving; then it is ended"
    )
    watchdog_seconds: float = Field(30.0, gt=0, description="standstill of the event loop that ends the process")
    health_port: int | None = Field(
        None, ge=0, le=65535, description="port where health alone answers in clear text, for probes that know no TLS"
    )
    reflection: bool = Field(True, description="whether the server tells callers its schema (gRPC reflection)")
    max_request_bytes: int = Field(32 << 20, ge=1 << 10, le=2**31 - 1, description="longest message of a caller")
    max_receiving: int = Field(
        8, ge=2, description="requests that are read at once, each of which may take twice max_request_bytes and 1 MiB"
    )
    receive_seconds: float = Field(
        20.0, gt=0, description="how long a request, a handshake of TLS and a scrape of metrics may take to arrive"
    )
    max_connections: int = Field(1024, ge=1, description="connections to the server; more are refused")
    max_calls: int = Field(1024, ge=1, description="calls in progress above which more are refused")
    calls_per_second: float | None = Field(
        None, gt=0, description="calls that a caller (a token, or all who show none) may begin; default: no limit"
    )


class AccessSettings(Table):
    """The table [access]: who may call a service, and what the service shows as a client of others.

    All are files, certificates and keys in PEM, that are read again when they change.
    """

    certificate: Path | None = Field(
        None, description="of this service, with its chain: its server speaks TLS, and its clients show it to others"
    )
    key: Path | None = Field(None, description="of the certificate")
    authority: Path | None = Field(None, description="certificates that sign those of others: callers then speak TLS")
    mutual: bool = Field(False, description="whether the server refuses a client without certificate of the authority")
    server_name: str | None = Field(
        None, description="name in the certificates of servers; default: that in their address"
    )
    tokens: Path | None = Field(
        None, description="tokens that the server takes, lines of ROLE[,ROLE] TOKEN; default: it asks for none"
    )
    token: Path | None = Field(None, description="the token that this service shows to other servers")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together; set both or none")
        if self.mutual and not (self.certificate and self.authority):
            raise ValueError("mutual needs certificate, key and authority")
        return self


# Texts that end a response. Environment and flags can say one.
StopTexts = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)], ...],
    Field(max_length=MAX_STOPS),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]


class StopSettings(Table):
    """Criteria that end a run before its steps are done; the first that is met does, after the step in progress."""

    accuracy: float | None = Field(
        None, gt=0, le=1, description="sampled accuracy on the main held-out set; default: none"
    )
    seconds: float | None = Field(
        None, gt=0, description="time that the learner has worked or waited, over all starts; pauses do not count"
    )
    tokens: int | None = Field(None, ge=1, description="tokens of responses that were trained on")


def _name_of_now() -> str:
    """A name by the time; with a random part, as two runs may begin within one second."""
    return f"{datetime.now(UTC):run-%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class RunSettings(Table):
    """What all services of one run must agree on."""

    id: str = Field(
        default_factory=_name_of_now,
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="name of the run: prefix of its Redis keys and name of its folder",
    )
    folder: Path = Field(Path("runs"), description="parent of the folders of runs")
    model: Path | str = Field(
        description="model folder in the Hugging Face format, in a recipe relative to the recipe; or OWNER/NAME on the "
        "Hugging Face Hub, where no folder OWNER is there"
    )
    model_revision: str = Field(
        "", description="branch, tag or commit of a model on the Hugging Face Hub; default: its main branch"
    )
    task: str | None = Field(None, description="the task that prompts come from; default: the tables [[data.train]]")
    seed: int = Field(0, ge=0, description="start of every random sequence")
    steps: int = Field(100, ge=1, description="optimizer batches, each of which publishes a version")
    groups_per_step: int = Field(32, ge=1, description="prompts in an optimizer batch")
    max_staleness: int = Field(2, ge=0, description="versions that a trajectory may be behind when it is trained on")
    groups_in_flight: int | None = Field(
        None,
        ge=1,
        description="groups that are under way at once, from prompt to trained or dropped; fewer leave max_staleness "
        "to those that others overtake; default: (max_staleness + 1) x groups_per_step",
    )
    weights_transfer: Literal["files", "broadcast"] = Field(
        "files",
        description="how new weights reach generation: from a folder that both see, or over the network, from each "
        "rank of the learner to each worker; then only versions that are evaluated, have a checkpoint or are the last "
        "have files",
    )
    weights_full_every: int = Field(
        0,
        ge=0,
        description="versions from one that replicas get whole to the next; of those between, what changed since the "
        "version before is published beside the files, or sent, to replicas that have that one; 0: all are whole",
    )
    gpu_hour_price: float = Field(
        0, ge=0, description="what a GPU costs in an hour, in any currency: dashboards count with it"
    )
    stop: StopSettings = StopSettings()
    evaluate_every: int = Field(20, ge=0, description="versions between evaluations; 0: first and last only")
    trackers: Texts = Field(
        (),
        description="experiment trackers that get every record beside the run's folder, as in tensorboard,wandb; "
        "the tables [tracking.NAME] say how",
    )

    @field_validator("model", mode="before")
    @classmethod
    def _folder_or_name(cls, value: Any) -> Any:
        return parse_model(value, Path()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _accuracy_is_measured(self) -> Self:
        if self.stop.accuracy is not None and not self.evaluate_every:
            raise ValueError(
                f"stop.accuracy is {self.stop.accuracy:g}, and evaluate_every is 0: no version is evaluated before the "
                "end; set evaluate_every to the versions between evaluations"
            )
        return self

    @model_validator(mode="after")
    def _groups_in_flight_fill_steps(self) -> Self:
        least, most = self.groups_per_step, (self.max_staleness + 1) * self.groups_per_step
        if self.groups_in_flight is not None and not least <= self.groups_in_flight <= most:
            raise ValueError(
                f"groups_in_flight is {self.groups_in_flight}; it must be at least groups_per_step = {least}, or no "
                f"step would fill, and at most (max_staleness + 1) x groups_per_step = {most}, or some would always be "
                "too stale; leave it out for the most"
            )
        return self

    @model_validator(mode="after")
    def _revision_is_of_a_name(self) -> Self:
        if self.model_revision and isinstance(self.model, Path):
            raise ValueError(
                f"model_revision is {self.model_revision!r}, and model is the folder {self.model}; only OWNER/NAME on "
                "the Hugging Face Hub has revisions: take it out"
            )
        return self

    @property
    def path(self) -> Path:
        """Folder of logs, weights, checkpoints and records of this run."""
        return self.folder / self.id

    def model_folder(self, *, weights: bool = True) -> Path:
        """The model folder; of a name on the Hugging Face Hub, that in its cache. Otherwise as `hub.fetch`."""
        return self.model if isinstance(self.model, Path) else fetch(self.model, self.model_revision, weights=weights)

    def require_model(self, *, weights: bool = True) -> Path:
        """The model folder, after what can be told without loading it was checked.

        Args:
            weights: False where config, tokenizer and chat template are enough.

        Raises:
            NotFoundError: it is none, or lacks a file.
            CorruptDataError: a file in it is broken.
            PreconditionError, MissingDependencyError: it is on the Hugging Face Hub, and cannot be fetched.
        """
        folder = self.model_folder(weights=weights)
        if (folder / "config.json").is_file():
            if weights:
                check_folder(folder)
            return folder
        what = "no config.json there" if folder.is_dir() else "no such folder"
        raise NotFoundError(
            f"run.model is {folder}; {what}: expected a Hugging Face model folder, or a name on the Hugging Face Hub"
        )

    @property
    def checkpoints_root(self) -> Path:
        return self.path / records.CHECKPOINTS

    @property
    def weights_root(self) -> Path:
        return self.path / records.WEIGHTS

    @property
    def tickets(self) -> int:
        """Groups in flight; no more than keep every trajectory within `max_staleness`, if groups finish in order."""
        return self.groups_in_flight or (self.max_staleness + 1) * self.groups_per_step


class EarlyStopSettings(Table):
    """Stopping groups whose first rewards are equal, without a bias: docs/explanation/early-stop.md."""

    first: int = Field(
        0, ge=0, description="responses to a prompt that are sampled and scored before the others; 0: all at once"
    )
    error: float = Field(
        0.2,
        gt=0,
        le=1,
        description="share of the groups with equal first rewards that would have turned out unequal, by estimate, up "
        "to which such groups may be stopped",
    )


class RolloutSettings(Table):
    """How the responses that the learner trains on are sampled. Those of evaluation have a table of their own.

    A token's log-prob is that under the distribution that it was sampled from, and the learner computes its own at the
    same temperature. Their ratio corrects what the sampler's weights and kernels differ in. It cannot correct a sampler
    that leaves out tokens, so what would do that is refused here.
    """

    n: int = Field(8, ge=2, le=MAX_SAMPLES, description="responses to each prompt: the size of a group")
    max_tokens: int = Field(
        24, ge=1, description="longest response; of an episode, tokens that the model samples in all turns"
    )
    temperature: float = Field(
        1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="of the policy that samples and of the one trained"
    )
    stop: StopTexts = Field((), description="texts that end a response, which keeps them")
    early_stop: EarlyStopSettings = EarlyStopSettings()
    top_p: float = Field(1.0, description="1 alone: training needs every token to be possible")
    top_k: int = Field(0, description="0 alone, for the same reason")
    min_p: float = Field(0.0, description="0 alone, for the same reason")
    min_tokens: int = Field(0, description="0 alone, for the same reason: it forbids to end")

    @field_validator("top_p", "top_k", "min_p", "min_tokens")
    @classmethod
    def _leaves_out_no_token(cls, value: float, info: ValidationInfo) -> float:
        name = str(info.field_name)
        full = cls.model_fields[name].default
        if value != full:
            raise ValueError(
                f"rollouts take {full} alone: a token that is never sampled has no importance ratio, so the loss would "
                f"be biased against it, and the sampler's log-probs would be those of fewer tokens than the learner's; "
                f"lower rollout.temperature, or set curriculum.evaluation.sampling for evaluation"
            )
        return value

    @model_validator(mode="after")
    def _first_wave_is_a_part(self) -> Self:
        first = self.early_stop.first
        if first and not 2 <= first < self.n:
            raise ValueError(
                f"early_stop.first is {first}, and n is {self.n}; it must be 0, or at least 2, as one reward equals "
                "itself, and less than n"
            )
        return self


class RedisSettings(Table):
    """How services reach Redis."""

    url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="REDIS_URL in the environment wins over a recipe; rediss:// speaks TLS; "
        "redis+sentinel://HOST,HOST/NAME asks Sentinels for the primary, redis+cluster://HOST,HOST nodes of a Cluster",
    )
    username: str | None = Field(None, description="ACL user; default: that in the URL, or Redis' own")
    password_file: Path | None = Field(None, description="the user's password, read for every new connection")
    sentinel_username: str | None = Field(None, description="ACL user of the Sentinels; default: none, or their own")
    sentinel_password_file: Path | None = Field(None, description="its password, or that of Sentinels without users")
    durability: Literal["none", "fsync", "replicas"] = Field(
        "none",
        description="where a write lies before it is acknowledged: see explanation/promises.md",
    )
    durable_replicas: int = Field(1, ge=1, description="replicas that have a write, where durability is replicas")
    authority: Path | None = Field(None, description="certificates to trust for rediss://; default: the system's")
    certificate: Path | None = Field(None, description="to show to Redis, where it asks for one")
    key: Path | None = Field(None, description="of the certificate")
    timeout_seconds: float = Field(10.0, gt=0, description="deadline of one command")
    connect_seconds: float = Field(5.0, gt=0, description="how long a start waits for Redis to answer")
    outage_seconds: float = Field(
        60.0, gt=0, le=240, description="how long a service rides out a Redis that does not answer before it ends"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if wrong := redis_url.problem(self.url.get_secret_value()):
            raise ValueError(f"url, which REDIS_URL sets, {wrong}")
        url = urlsplit(self.url.get_secret_value())
        if (self.authority or self.certificate) and url.scheme not in redis_url.TLS:
            raise ValueError("authority and certificate are for a URL that begins with rediss://")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together; set both or none")
        if self.username and not self.password_file:
            raise ValueError("username needs password_file")
        if self.sentinel_username and not self.sentinel_password_file:
            raise ValueError("sentinel_username needs sentinel_password_file")
        if self.sentinel_password_file and url.scheme not in redis_url.SENTINEL:
            raise ValueError(
                "sentinel_password_file is for a URL that begins with redis+sentinel:// or rediss+sentinel://"
            )
        if self.password_file and (url.username or url.password):
            raise ValueError("the URL and password_file both name a user or a password; take them out of the URL")
        return self


class StreamSettings(Table):
    """How consumers behave. `idle` is the age at which a silent consumer's entries go to another."""

    max_bytes: int = Field(
        256 << 20,
        ge=1 << 16,
        description="bytes in one stream at which its producers wait; prompts and episodes share it",
    )
    inline_bytes: int = Field(
        32 << 10, ge=1 << 8, description="payload above which it lies beside its stream, under a key of its own"
    )
    max_entry_bytes: int = Field(
        16 << 20, ge=1 << 10, le=256 << 20, description="payload above which it goes in chunks of this size"
    )
    block_seconds: float = Field(0.5, gt=0, le=5, description="longest wait of one read")
    idle_seconds: float = Field(30.0, gt=0, description="silence after which an entry is taken over")
    max_deliveries: int = Field(5, ge=1, description="deliveries after which an entry goes to the dead letters")
    consumer: str = Field("", description="name among the consumers of a group; default: the host's name")
    lease_seconds: float = Field(
        15.0, gt=0, description="silence after which another machine may take over a run's learner or curriculum"
    )


class BaseSettings(Table):
    """What each service reads beside its own table."""

    run: RunSettings
    rollout: RolloutSettings = RolloutSettings()
    redis: RedisSettings = RedisSettings()
    streams: StreamSettings = StreamSettings()
    payloads: PayloadSettings = PayloadSettings()
    access: AccessSettings = AccessSettings()
    tracking: TrackingSettings = TrackingSettings()
    traces: TracesSettings = TracesSettings()
