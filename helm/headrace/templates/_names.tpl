{{- define "headrace.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains "headrace" $name) -}}{{- $name = printf "%s-headrace" $name -}}{{- end -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Of one kind of pods: (dict "root" $ "component" "router"). Pods have no more: another version of the chart restarts none. */}}
{{- define "headrace.selector" -}}
app.kubernetes.io/name: headrace
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "headrace.labels" -}}
{{ include "headrace.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "headrace.image" -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- if .engine -}}{{- $tag = .root.Values.image.engineTag | default $tag -}}{{- end -}}
{{ .root.Values.image.repository }}:{{ $tag }}
{{- end -}}

{{- define "headrace.redisSecret" -}}
{{- if .Values.redis.passwordSecret -}}{{ .Values.redis.passwordSecret }}
{{- else if .Values.redis.bundled -}}{{ include "headrace.name" . }}-redis
{{- end -}}
{{- end -}}
