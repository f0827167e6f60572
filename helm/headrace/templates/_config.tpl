{{/* The tree of headrace.yaml: what only the chart can know, and the values' config over it. As JSON. */}}
{{- define "headrace.config" -}}
{{- $redis := dict -}}
{{- if .Values.redis.bundled -}}
  {{- $_ := set $redis "url" (printf "redis://%s-redis:6379/0" (include "headrace.name" .)) -}}
{{- else if not (dig "redis" "url" "" .Values.config) -}}
  {{- fail "redis.bundled is false, so config.redis.url has to say where Redis is, such as rediss://redis.example:6379/0" -}}
{{- end -}}
{{- if include "headrace.redisSecret" . -}}
  {{- $_ := set $redis "password_file" "/run/secrets/redis/password" -}}
{{- end -}}
{{- $computed := dict "redis" $redis -}}
{{- if eq .Values.mode "kuberay" -}}{{- $_ := set $computed "engine" (dict "host" "node") -}}{{- end -}}
{{- mergeOverwrite $computed (deepCopy .Values.config) | toJson -}}
{{- end -}}

{{/* A change of these sections restarts these pods; a change of sizes restarts none. */}}
{{- define "headrace.checksum" -}}
{{- $config := include "headrace.config" .root | fromJson -}}
{{- if eq .component "worker" -}}
  {{- $config = pick $config "model" "engine" "redis" "index" "kv_events" "telemetry" "health" "state_dir" -}}
{{- else -}}
  {{- $config = omit $config "pools" -}}
  {{- if hasKey $config "router" -}}{{- $_ := set $config "router" (omit $config.router "replicas") -}}{{- end -}}
{{- end -}}
{{- $config | toJson | sha256sum -}}
{{- end -}}

{{/* Seconds, rounded up. Defaults are those of the config types; tests/helm compares them. */}}
{{- define "headrace.routerGrace" -}}
{{- $drain := dig "router" "drain_s" 10.0 .Values.config | float64 -}}
{{- addf 5 $drain 10 | ceil | int -}}
{{- end -}}
{{- define "headrace.workerGrace" -}}
{{- $drain := dig "engine" "shutdown_timeout_s" 10.0 .Values.config | float64 -}}
{{- addf (mulf 2 $drain) 15 | ceil | int -}}
{{- end -}}
{{- define "headrace.startSeconds" -}}
{{- dig "engine" "start_timeout_s" 600.0 .Values.config | float64 | ceil | int -}}
{{- end -}}

{{- define "headrace.httpPort" -}}{{- dig "router" "http" "port" 8000 .Values.config | int -}}{{- end -}}
{{- define "headrace.grpcPort" -}}{{- dig "router" "grpc" "port" 8001 .Values.config | int -}}{{- end -}}
{{- define "headrace.pickerPort" -}}{{- dig "router" "endpoint_picker" "port" 9002 .Values.config | int -}}{{- end -}}
{{- define "headrace.hasPicker" -}}{{- if dig "router" "endpoint_picker" "enabled" false .Values.config -}}yes{{- end -}}{{- end -}}
{{- define "headrace.adminPort" -}}{{- dig "admin" "port" 8002 .Values.config | int -}}{{- end -}}
{{- define "headrace.enginePort" -}}{{- dig "engine" "http_port" 0 .Values.config | int -}}{{- end -}}
{{- define "headrace.healthPort" -}}{{- dig "health" "port" 0 .Values.config | int -}}{{- end -}}
{{- define "headrace.scheme" -}}{{- if dig "router" "http" "tls" nil .Values.config -}}HTTPS{{- else -}}HTTP{{- end -}}{{- end -}}
{{- define "headrace.adminIsOpen" -}}
{{- if not (has (dig "admin" "host" "127.0.0.1" .Values.config) (list "127.0.0.1" "::1" "localhost")) -}}yes{{- end -}}
{{- end -}}
{{- define "headrace.poolSize" -}}
{{- $default := ternary 0 1 (eq .role "mixed") -}}
{{- dig "pools" .role $default .root.Values.config | int -}}
{{- end -}}
{{- define "headrace.picksForGateway" -}}
{{- if and .Values.gateway.parent .Values.gateway.inferencePool -}}yes{{- end -}}
{{- end -}}
