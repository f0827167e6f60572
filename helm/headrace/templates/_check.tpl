{{/* What the schema cannot say: one message for each mistake. */}}
{{- define "headrace.check" -}}
{{- $config := .Values.config -}}
{{- if not (dig "health" "port" nil $config) -}}
  {{- fail "config.health has to be set: probes ask it; values.yaml has {host: 0.0.0.0, port: 8003}" -}}
{{- end -}}
{{- if not (dig "engine" "http_port" nil $config) -}}
  {{- fail "config.engine.http_port has to be set: gateways and policies name it; values.yaml has 8100" -}}
{{- end -}}
{{- if .Values.gateway.inferencePool -}}
  {{- if not .Values.gateway.parent -}}
    {{- fail "gateway.inferencePool is true, so gateway.parent has to name the Gateway: {name: ..., namespace: ...}" -}}
  {{- end -}}
  {{- if not (include "headrace.hasPicker" .) -}}
    {{- fail "gateway.inferencePool is true, so config.router.endpoint_picker has to be {enabled: true, host: 0.0.0.0}" -}}
  {{- end -}}
  {{- if not (eq .Values.mode "plain") -}}
    {{- fail "gateway.inferencePool is true: that works with mode: plain only" -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.autoscaling (not (eq .Values.mode "plain")) -}}
  {{- fail "autoscaling is given: that works with mode: plain only; Serve keeps the sizes in config" -}}
{{- end -}}
{{- include "headrace.checkFiles" . -}}
{{- include "headrace.checkAdmin" . -}}
{{- if not (dig "router" "public_metrics" true $config) -}}
  {{- if not (dig "admin" "tokens_file" nil $config) -}}
    {{- fail "config.router.public_metrics is false, so config.admin.tokens_file has to say who reads metrics" -}}
  {{- end -}}
  {{- if and .Values.monitoring.podMonitors (not .Values.monitoring.tokenSecret) -}}
    {{- fail "config.router.public_metrics is false, so monitoring.tokenSecret has to name a Secret with a viewer's token" -}}
  {{- end -}}
{{- end -}}
{{- range $kind, $scale := .Values.autoscaling -}}
  {{- if $scale -}}
    {{- if eq (empty $scale.metrics) (empty $scale.triggers) -}}
      {{- fail (printf "autoscaling.%s has to have either metrics (an HPA's) or triggers (KEDA's)" $kind) -}}
    {{- end -}}
    {{- if and (ne $kind "router") (lt (include "headrace.poolSize" (dict "root" $ "role" $kind) | int) 1) -}}
      {{- fail (printf "autoscaling.%s is given, but config.pools.%s is 0" $kind $kind) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* The admin API is open on purpose, with tokens and TLS, or not at all. */}}
{{- define "headrace.checkAdmin" -}}
{{- $isOpen := include "headrace.adminIsOpen" . -}}
{{- $admin := .Values.config.admin | default dict -}}
{{- if and $isOpen (not $admin.tokens_file) -}}
  {{- fail (printf "config.admin.host is %s, which others can reach, so config.admin.tokens_file has to say who may" $admin.host) -}}
{{- end -}}
{{- if and (or $isOpen $admin.tls) (eq .Values.mode "kuberay") -}}
  {{- fail "config.admin: with mode: kuberay it stays on loopback, without tls: KubeRay asks Serve there; use kubectl port-forward" -}}
{{- end -}}
{{- if .Values.adminIngress.host -}}
  {{- if not $isOpen -}}
    {{- fail "adminIngress.host is given, so config.admin.host has to be 0.0.0.0" -}}
  {{- end -}}
  {{- if not .Values.adminIngress.tlsSecret -}}
    {{- fail "adminIngress.host is given, so adminIngress.tlsSecret has to be, too: tokens go by it" -}}
  {{- end -}}
  {{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.admins) -}}
    {{- fail "adminIngress.host is given, so networkPolicy.admins has to let the ingress controller's pods in" -}}
  {{- end -}}
{{- end -}}
{{- end -}}
