{{/* Metadata of an object: (list $ NAME COMPONENT); COMPONENT is a service's name, or empty. */}}
{{- define "routershift.metadata" -}}
{{- $root := index . 0 -}}
name: {{ $root.Release.Name }}-{{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- with index . 2 }}
  app.kubernetes.io/name: {{ . }}
  {{- end }}
  app.kubernetes.io/instance: {{ $root.Release.Name }}
  app.kubernetes.io/part-of: routershift
  app.kubernetes.io/managed-by: {{ $root.Release.Service }}
  helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end }}

{{/* Labels that select the pods of a service of this release alone: (list $ COMPONENT). */}}
{{- define "routershift.selector" -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end }}

{{/* An image of ours: (list $ TARGET). */}}
{{- define "routershift.image" -}}
{{- $root := index . 0 -}}{{- $target := index . 1 -}}
{{- with get $root.Values.digests $target -}}
{{ $root.Values.registry }}/{{ $target }}@{{ . }}
{{- else -}}
{{ $root.Values.registry }}/{{ $target }}:{{ $root.Values.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The name of the run: the release's, where none is given. */}}
{{- define "routershift.run" -}}
{{ .Values.run | default .Release.Name }}
{{- end }}

{{/* The ConfigMap of the recipe, which has another name with other contents: new pods come, and old ones keep theirs. */}}
{{- define "routershift.recipe" -}}
{{ .Release.Name }}-recipe-{{ .Values.recipe | sha256sum | trunc 10 }}
{{- end }}

{{- define "routershift.redis-config" -}}
{{ .Release.Name }}-redis-{{ printf "%s%s" (.Files.Get "files/redis.conf") (.Files.Get "files/tls.conf") | sha256sum | trunc 10 }}
{{- end }}

{{/* A claim: (list $ "runs"), the release's own or one that is there. */}}
{{- define "routershift.claim" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}
{{ get (get $root.Values.storage $name) "existingClaim" | default (printf "%s-%s" $root.Release.Name $name) }}
{{- end }}

{{/*
What is fixed of each service. runs: whether it writes, reads or does not see the run's folder; peers: whom it calls.
A pod may drain for `drain` seconds and take 45 more to close.
*/}}
{{- define "routershift.services" -}}
generation: {port: 50051, metrics: 9101, drain: 300, runs: read, models: true, shm: true, tmp: 4Gi, tokens: true, peers: [reward]}
environments: {port: 50055, metrics: 9105, drain: 120, runs: none, models: true, shm: false, tmp: 1Gi, tokens: true, peers: [generation]}
reward: {port: 50052, metrics: 9102, drain: 120, runs: none, models: false, shm: false, tmp: 1Gi, tokens: true, peers: []}
learner: {port: 50053, metrics: 9103, drain: 600, runs: write, models: true, shm: true, tmp: 4Gi, tokens: true, peers: []}
curriculum: {port: 50054, metrics: 9104, drain: 30, runs: write, models: false, shm: false, tmp: 256Mi, tokens: false, peers: [generation, reward, environments]}
{{- end }}

{{/* The image of a service: those of generation and of the learner depend on GPUs. */}}
{{- define "routershift.target" -}}
{{- $gpus := get (get (index . 0).Values (index . 1)) "gpus" | default 0 | int -}}
{{- if and (eq (index . 1) "generation") (not $gpus) -}}generation-cpu
{{- else if and (eq (index . 1) "learner") $gpus -}}learner-gpu
{{- else -}}{{ index . 1 }}
{{- end -}}
{{- end }}

{{/*
Seconds from the start of a process to serving, by which it ends itself: as the recipe says; and of one that loads the model
at least 180 and the time that the weights take to be read.
*/}}
{{- define "routershift.start-seconds" -}}
{{- $root := index . 0 -}}{{- $service := index . 1 -}}
{{- $seconds := dig $service "start_seconds" 180 (fromToml $root.Values.recipe) | float64 -}}
{{- if has $service (list "generation" "learner") -}}
{{- $read := divf (mulf $root.Values.model.gigabytes 1000) $root.Values.model.megabytesPerSecond -}}
{{- $seconds = maxf $seconds (addf 180 $read) -}}
{{- end -}}
{{ $seconds | ceil | int }}
{{- end }}

{{/* What the startup probe allows, in seconds: longer, so that the service itself says what it waited for. */}}
{{- define "routershift.startup-seconds" -}}
{{ max 1500 (mulf 1.25 (include "routershift.start-seconds" . | float64) | ceil | int) }}
{{- end }}
