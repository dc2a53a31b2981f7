{{/*
The pod of a service of ours: (dict "root" $ "service" NAME "ranks" ""). `ranks` is `leader` or `workers` for the pods of a
learner over several nodes: the leader is rank 0 and serves; workers see neither Redis nor callers.
*/}}
{{- define "routershift.pod" -}}
{{- $ := .root -}}{{- $service := .service -}}{{- $ranks := .ranks -}}
{{- $facts := get (include "routershift.services" $ | fromYaml) $service -}}
{{- $own := get $.Values $service -}}
{{- $gpus := get $own "gpus" | default 0 | int -}}
{{- $shares := or $gpus $own.rdma -}}
{{- $serves := ne $ranks "workers" -}}
{{- with $ranks }}
restartPolicy: Never
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $.Values.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- if and $.Values.priorityClass (has $service (list "learner" "curriculum")) }}
priorityClassName: {{ $.Values.priorityClass }}
{{- end }}
terminationGracePeriodSeconds: {{ ternary (add $facts.drain 60) (add $facts.drain 45) (ne $ranks "") }}
{{- include "routershift.security" 10001 }}
{{- with merge (dict) $own.nodeSelector (ternary $.Values.gpu.nodeSelector (dict) (gt $gpus 0)) }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat (ternary $.Values.gpu.tolerations list (gt $gpus 0)) $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "routershift.placement" . }}
{{- $functions := and (eq $service "curriculum") $.Values.redis.users }}
{{- if and $facts.models $.Values.model.download.enabled }}
# Without a way out itself, it waits for the Job that has one.
initContainers:
  - name: model
    image: {{ include "routershift.image" (list $ (include "routershift.target" (list $ $service))) }}
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'until [ -e "$0/config.json" ]; do sleep 5; done', {{ (fromToml $.Values.recipe).run.model }}]
    {{- include "routershift.small" $ | nindent 4 }}
    volumeMounts:
      - {name: models, mountPath: /models, readOnly: true}
{{- end }}
containers:
  - name: {{ $service }}
    image: {{ include "routershift.image" (list $ (include "routershift.target" (list $ $service))) }}
    imagePullPolicy: IfNotPresent
    {{- if $ranks }}
    {{- include "routershift.torchrun" . | nindent 4 }}
    {{- else }}
    args: [serve, {{ $service }}, --recipe, /etc/routershift/recipe.toml]
    {{- end }}
    env:
      {{- include "routershift.environment" . | nindent 6 }}
    {{- if $serves }}
    ports:
      - {name: grpc, containerPort: {{ $facts.port }}}
      - {name: metrics, containerPort: {{ $facts.metrics }}}
      {{- if $.Values.tls.enabled }}
      - {name: health, containerPort: 8080}
      {{- end }}
      {{- if and (eq $service "environments") $.Values.routes.gateway.enabled }}
      - {name: http, containerPort: 8011}
      {{- end }}
    {{- $probed := ternary 8080 $facts.port $.Values.tls.enabled }}
    # The service itself ends a start that takes longer than start_seconds, and says what it waited for.
    startupProbe:
      grpc: {port: {{ $probed }}}
      periodSeconds: 5
      timeoutSeconds: 3
      failureThreshold: {{ divf (include "routershift.startup-seconds" (list $ $service) | float64) 5 | ceil | int }}
    readinessProbe:
      grpc: {port: {{ $probed }}}
      periodSeconds: 5
      timeoutSeconds: 3
    livenessProbe:
      grpc: {port: {{ $probed }}}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 6
    {{- end }}
    {{- $devices := dict }}
    {{- if $gpus }}{{ $_ := set $devices $.Values.gpu.resource (toString $gpus) }}{{ end }}
    {{- with $own.rdma }}{{ $_ := set $devices .resource (toString .count) }}{{ end }}
    resources:
      requests:
        {{- toYaml $own.resources.requests | nindent 8 }}
      limits:
        {{- toYaml (merge (dict) $own.resources.limits $devices) | nindent 8 }}
    {{- include "routershift.confined" (and $own.rdma $own.rdma.ipcLock) | nindent 4 }}
    volumeMounts:
      - {name: recipe, mountPath: /etc/routershift, readOnly: true}
      - {name: tmp, mountPath: /tmp}
      - name: runs
        mountPath: /runs
        {{- if and (eq $facts.runs "read") (eq $.Values.weightsTransfer "shared") }}
        readOnly: true
        {{- end }}
      {{- if $facts.models }}
      - {name: models, mountPath: /models, readOnly: true}
      {{- end }}
      {{- if $facts.shm }}
      - {name: shm, mountPath: /dev/shm}
      {{- end }}
      {{- if $serves }}
      {{- range $name, $mounted := include "routershift.secrets" (list $ $service) | fromYaml }}
      - {name: {{ $name }}, mountPath: {{ $mounted.path }}, readOnly: true}
      {{- end }}
      {{- end }}
{{- if $functions }}
  # Gives Redis the functions of this version, which users of services may not load, and gives them again to one that has
  # lost its data. Services wait for them.
  - name: functions
    image: {{ include "routershift.image" (list $ "curriculum") }}
    imagePullPolicy: IfNotPresent
    args: [functions, --keep]
    env:
      - {name: ROUTERSHIFT_REDIS__USERNAME, value: functions}
      - {name: ROUTERSHIFT_REDIS__PASSWORD_FILE, value: /etc/routershift-functions/password}
      {{- range $name, $value := include "routershift.redis-files" $ | fromYaml }}
      - {name: ROUTERSHIFT_REDIS__{{ $name }}, value: {{ $value }}}
      {{- end }}
      {{- include "routershift.redis-url" $ | nindent 6 }}
    {{- include "routershift.small" $ | nindent 4 }}
    volumeMounts:
      - {name: functions-password, mountPath: /etc/routershift-functions, readOnly: true}
      - {name: tmp, mountPath: /tmp}
      {{- if $.Values.tls.enabled }}
      - {name: tls, mountPath: /etc/routershift-tls, readOnly: true}
      {{- end }}
      {{- if $.Values.redis.authority.secret }}
      - {name: redis-authority, mountPath: /etc/routershift-redis-authority, readOnly: true}
      {{- end }}
      {{- if $.Values.redis.sentinel.secret }}
      - {name: redis-sentinel, mountPath: /etc/routershift-redis-sentinel, readOnly: true}
      {{- end }}
{{- end }}
volumes:
  - name: recipe
    configMap: {name: {{ include "routershift.recipe" $ }}}
  - name: tmp
    emptyDir: {sizeLimit: {{ $facts.tmp }}}
  - name: runs
    {{- if or (eq $facts.runs "none") (and (eq $facts.runs "read") (eq $.Values.weightsTransfer "broadcast")) }}
    emptyDir: {sizeLimit: 1Gi}
    {{- else }}
    persistentVolumeClaim:
      claimName: {{ include "routershift.claim" (list $ "runs") }}
      {{- if eq $facts.runs "read" }}
      readOnly: true
      {{- end }}
    {{- end }}
  {{- if $facts.models }}
  - name: models
    persistentVolumeClaim:
      claimName: {{ include "routershift.claim" (list $ "models") }}
      readOnly: true
  {{- end }}
  {{- if $facts.shm }}
  - name: shm
    emptyDir: {medium: Memory, sizeLimit: {{ $own.sharedMemory }}}
  {{- end }}
  {{- if $functions }}
  - name: functions-password
    secret: {secretName: {{ $.Release.Name }}-redis-functions, defaultMode: 0440}
  {{- end }}
  {{- if $serves }}
  {{- range $name, $mounted := include "routershift.secrets" (list $ $service) | fromYaml }}
  - name: {{ $name }}
    secret: {secretName: {{ $mounted.secret }}, defaultMode: 0440}
  {{- end }}
  {{- end }}
{{- end }}

{{/* Files that a pod that serves gets from Secrets: by volume, path and Secret. */}}
{{- define "routershift.secrets" -}}
{{- $ := index . 0 -}}{{- $service := index . 1 -}}{{- $release := $.Release.Name -}}
{{- if $.Values.redis.users }}
redis-password: {path: /etc/routershift-redis, secret: {{ $release }}-redis-{{ $service }}}
{{- end }}
{{- with $.Values.redis.authority.secret }}
redis-authority: {path: /etc/routershift-redis-authority, secret: {{ . }}}
{{- end }}
{{- with $.Values.redis.sentinel.secret }}
redis-sentinel: {path: /etc/routershift-redis-sentinel, secret: {{ . }}}
{{- end }}
{{- if $.Values.tls.enabled }}
tls: {path: /etc/routershift-tls, secret: {{ $release }}-tls-{{ $service }}}
{{- if ne $service "curriculum" }}
tokens: {path: /etc/routershift-tokens, secret: {{ $release }}-access-tokens}
{{- end }}
{{- if has $service (list "curriculum" "environments") }}
token: {path: /etc/routershift-token, secret: {{ $release }}-access-token-{{ $service }}}
{{- end }}
{{- end }}
{{- end }}

{{/* What torchrun is told of the nodes; the workers count themselves. */}}
{{- define "routershift.torchrun" -}}
{{- $ := .root -}}{{- $learner := $.Values.learner -}}{{- $leader := printf "%s-learner-leader-0-0.%s-learner-ranks" $.Release.Name $.Release.Name -}}
{{- /* Above learner.drain_seconds, below the grace of the pod. */ -}}
{{- $patience := 620 -}}
{{- if eq .ranks "leader" -}}
command: [tini, --, torchrun]
args:
  - --nnodes={{ $learner.nodes }}
  - --node-rank=0
  - --nproc-per-node={{ $learner.gpus }}
  - --master-addr={{ $leader }}
  - --master-port=29500
  - --shutdown-timeout={{ $patience }}
  - --module
  - services.cli.main
  - serve
  - learner
  - --recipe
  - /etc/routershift/recipe.toml
{{- else -}}
command: [tini, --, sh, -c]
args:
  - |-
    exec torchrun --nnodes={{ $learner.nodes }} --node-rank=$((JOB_COMPLETION_INDEX + 1)) --nproc-per-node={{ $learner.gpus }} \
      --master-addr={{ $leader }} --master-port=29500 --shutdown-timeout={{ $patience }} \
      --module services.cli.main serve learner --recipe /etc/routershift/recipe.toml
{{- end -}}
{{- end }}

{{/* Where pods go: what is said, else replicas with GPUs beside each other and others apart; a node for each rank. */}}
{{- define "routershift.placement" -}}
{{- $ := .root -}}{{- $own := get $.Values .service -}}{{- $gpus := get $own "gpus" | default 0 | int -}}
{{- $selector := include "routershift.selector" (list $ .service) -}}
{{- with $own.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- else }}
{{- if and (has .service (list "generation" "environments" "reward")) (not $gpus) }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- $selector | nindent 8 }}
{{- end }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- else }}
{{- if .ranks }}
# A node each, whole; and of those that are near each other, where a key says which are.
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- $selector | nindent 12 }}
  {{- with $own.topologyKey }}
  podAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: {{ . }}
          labelSelector:
            matchLabels:
              {{- $selector | nindent 14 }}
  {{- end }}
{{- else if and (eq .service "generation") $gpus }}
# Replicas that spread over the nodes would leave none whole for the learner.
affinity:
  podAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- $selector | nindent 14 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "routershift.security" }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ . }}
  runAsGroup: {{ . }}
  fsGroup: {{ . }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{/* The confinement of a container; IPC_LOCK where it is asked for, which the restricted standard does not allow. */}}
{{- define "routershift.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    {{- if . }}
    add: [IPC_LOCK]
    {{- end }}
{{- end }}

{{/* A container that only waits or copies. */}}
{{- define "routershift.small" -}}
resources:
  requests: {cpu: 100m, memory: 128Mi}
  limits: {cpu: "1", memory: 512Mi}
{{ include "routershift.confined" false }}
{{- end }}
