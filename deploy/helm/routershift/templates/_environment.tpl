{{/* What a pod needs to know of the cluster, which is stronger than the recipe. */}}
{{- define "routershift.environment" -}}
{{- $ := .root -}}{{- $service := .service -}}{{- $serves := ne .ranks "workers" -}}
{{- $facts := get (include "routershift.services" $ | fromYaml) $service -}}
{{- $table := upper $service -}}{{- $own := get $.Values $service -}}
{{- $set := dict "ROUTERSHIFT_RUN__ID" (include "routershift.run" $) "ROUTERSHIFT_RUN__FOLDER" "/runs" -}}
{{- $_ := set $set (printf "ROUTERSHIFT_%s__DRAIN_SECONDS" $table) (toString $facts.drain) -}}
{{- $seconds := include "routershift.start-seconds" (list $ $service) | int -}}
{{- if gt $seconds (dig $service "start_seconds" 180 (fromToml $.Values.recipe) | int) -}}
{{- $_ := set $set (printf "ROUTERSHIFT_%s__START_SECONDS" $table) (toString $seconds) -}}
{{- if eq $service "generation" -}}
{{- /* vLLM loads in a process of its own; less than start_seconds, so that the service says why. */ -}}
{{- $_ := set $set "ROUTERSHIFT_GENERATION__VLLM__ANSWER_SECONDS" (sub $seconds 60 | toString) -}}
{{- end -}}
{{- end -}}
{{- if eq $.Values.weightsTransfer "broadcast" -}}
{{- $_ := set $set "ROUTERSHIFT_RUN__WEIGHTS_TRANSFER" "broadcast" -}}
{{- end -}}
{{- if $serves -}}
{{- $_ := set $set (printf "ROUTERSHIFT_%s__HOST" $table) "0.0.0.0" -}}
{{- $_ := set $set "ROUTERSHIFT_REDIS__CONNECT_SECONDS" "60" -}}
{{- if $.Values.redis.users -}}
{{- $_ := set $set "ROUTERSHIFT_REDIS__USERNAME" $service -}}
{{- $_ := set $set "ROUTERSHIFT_REDIS__PASSWORD_FILE" "/etc/routershift-redis/password" -}}
{{- end -}}
{{- range $facts.peers -}}
{{- $peer := get (include "routershift.services" $ | fromYaml) . -}}
{{- $_ := set $set (printf "ROUTERSHIFT_%s__%s_ADDRESS" $table (upper .)) (printf "dns:///%s-%s:%d" $.Release.Name . (int $peer.port)) -}}
{{- end -}}
{{- if and (eq $service "environments") $.Values.routes.gateway.enabled -}}
{{- $_ := set $set "ROUTERSHIFT_ENVIRONMENTS__GATEWAY__ENABLED" "true" -}}
{{- $_ := set $set "ROUTERSHIFT_ENVIRONMENTS__GATEWAY__PORT" "8011" -}}
{{- end -}}
{{- if $.Values.tls.enabled -}}
{{- $_ := set $set (printf "ROUTERSHIFT_%s__HEALTH_PORT" $table) "8080" -}}
{{- range $which, $file := dict "AUTHORITY" "ca.crt" "CERTIFICATE" "tls.crt" "KEY" "tls.key" -}}
{{- $_ := set $set (printf "ROUTERSHIFT_ACCESS__%s" $which) (printf "/etc/routershift-tls/%s" $file) -}}
{{- end -}}
{{- $_ := set $set "ROUTERSHIFT_ACCESS__MUTUAL" "true" -}}
{{- if ne $service "curriculum" -}}
{{- $_ := set $set "ROUTERSHIFT_ACCESS__TOKENS" "/etc/routershift-tokens/tokens" -}}
{{- end -}}
{{- if has $service (list "curriculum" "environments") -}}
{{- $_ := set $set "ROUTERSHIFT_ACCESS__TOKEN" "/etc/routershift-token/token" -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := include "routershift.redis-files" $ | fromYaml -}}
{{- $_ := set $set (printf "ROUTERSHIFT_REDIS__%s" $name) $value -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := merge (dict) $own.env $set }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- if $serves }}
{{ include "routershift.redis-url" $ }}
{{- if and (eq $service "learner") (eq $.Values.weightsTransfer "broadcast") }}
- name: ROUTERSHIFT_LEARNER__TRANSFER__HOST
  valueFrom:
    fieldRef: {fieldPath: status.podIP}
{{- end }}
{{- end }}
{{- end }}

{{/* Where the run's streams are. */}}
{{- define "routershift.redis-url" -}}
- name: REDIS_URL
  {{- if .Values.redis.enabled }}
  value: {{ ternary "rediss" "redis" .Values.tls.enabled }}://{{ .Release.Name }}-redis:6379/0
  {{- else }}
  valueFrom:
    secretKeyRef: {name: {{ .Values.redis.url.secret }}, key: {{ .Values.redis.url.key }}}
  {{- end }}
{{- end }}

{{/* Files for TLS to Redis and for its Sentinels, by their settings. */}}
{{- define "routershift.redis-files" -}}
{{- if and .Values.tls.enabled .Values.redis.enabled }}
AUTHORITY: /etc/routershift-tls/ca.crt
CERTIFICATE: /etc/routershift-tls/tls.crt
KEY: /etc/routershift-tls/tls.key
{{- end }}
{{- if .Values.redis.authority.secret }}
AUTHORITY: /etc/routershift-redis-authority/{{ .Values.redis.authority.key }}
{{- end }}
{{- if .Values.redis.sentinel.secret }}
SENTINEL_PASSWORD_FILE: /etc/routershift-redis-sentinel/{{ .Values.redis.sentinel.key }}
{{- end }}
{{- end }}
