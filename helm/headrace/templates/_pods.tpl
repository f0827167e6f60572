{{/* Parts of all our pods. (dict "root" $ "component" ... ) */}}
{{- define "headrace.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "headrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  {{- if .rdma }}
  add: [IPC_LOCK]
  {{- end }}
{{- end -}}

{{/* The head of every pod spec. */}}
{{- define "headrace.podHead" -}}
serviceAccountName: {{ include "headrace.name" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "headrace.podSecurity" . | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Which node. (dict "root" $ "component" ... "placement" values "spread" bool) */}}
{{- define "headrace.scheduling" -}}
{{- with .placement.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placement.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .spread }}
topologySpreadConstraints:
  {{- $default := list (dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway") }}
  {{- $labels := include "headrace.selector" . | fromYaml }}
  {{- range (.placement.topologySpread | default $default) }}
  - {{- merge (dict "labelSelector" (dict "matchLabels" $labels)) . | toYaml | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "headrace.volumes" -}}
- name: config
  configMap: {name: {{ include "headrace.name" .root }}}
- name: state
  emptyDir: {}
- name: tmp
  emptyDir: {}
{{- with include "headrace.redisSecret" .root }}
- name: redis
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- if and .model .root.Values.modelVolume }}
- name: models
  {{- toYaml .root.Values.modelVolume | nindent 2 }}
{{- end }}
{{- if .sharedMemory }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .sharedMemory }}}
{{- end }}
{{- range $key, $files := .root.Values.secrets }}
{{- if has $.kind ($files.in | default (list "router" "control-plane")) }}
- name: secret-{{ $key }}
  secret: {secretName: {{ $files.secret }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- end -}}

{{- define "headrace.volumeMounts" -}}
- {name: config, mountPath: /etc/headrace, readOnly: true}
- {name: state, mountPath: {{ .root.Values.config.state_dir | default "/var/lib/headrace" }}}
- {name: tmp, mountPath: /tmp}
{{- if include "headrace.redisSecret" .root }}
- {name: redis, mountPath: /run/secrets/redis, readOnly: true}
{{- end }}
{{- if and .model .root.Values.modelVolume }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- if .sharedMemory }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- range $key, $files := .root.Values.secrets }}
{{- if has $.kind ($files.in | default (list "router" "control-plane")) }}
- {name: secret-{{ $key }}, mountPath: /run/secrets/headrace/{{ $key }}, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{- define "headrace.env" -}}
- {name: HOME, value: {{ .root.Values.config.state_dir | default "/var/lib/headrace" }}}
- {name: PYTHONUNBUFFERED, value: "1"}
{{- end -}}

{{/* One container of ours, up to its probes. (dict "root" $ "component" ... "args" list "engine" bool "resources" ...) */}}
{{- define "headrace.container" -}}
name: headrace
image: {{ include "headrace.image" . | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [headrace]
args: {{ concat (list "run") .args (list "--config" "/etc/headrace/headrace.yaml") | toJson }}
securityContext:
  {{- include "headrace.containerSecurity" . | nindent 2 }}
resources:
  {{- toYaml .resources | nindent 2 }}
volumeMounts:
  {{- include "headrace.volumeMounts" . | nindent 2 }}
{{- end -}}

{{/* Values of one pool: those of all workers, and the pool's own over them. As JSON. */}}
{{- define "headrace.pool" -}}
{{- $pool := omit .root.Values.worker "pools" -}}
{{- range $key, $value := (index .root.Values.worker.pools .role | default dict) -}}
  {{- /* Not `merge`: it takes false and empty lists for absent. */ -}}
  {{- if ne (kindOf $value) "invalid" -}}{{- $_ := set $pool $key $value -}}{{- end -}}
{{- end -}}
{{- $pool | toJson -}}
{{- end -}}

{{/* What the kubelet asks. (dict "root" $ "port" name) */}}
{{- define "headrace.healthProbes" -}}
startupProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end -}}

{{- define "headrace.routerProbes" -}}
{{- $root := .root -}}
{{- if dig "router" "http" "tls" "client_ca_file" nil $root.Values.config -}}
{{- /* The kubelet has no certificate to show. */ -}}
startupProbe:
  tcpSocket: {port: http}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  tcpSocket: {port: http}
  periodSeconds: 10
readinessProbe:
  tcpSocket: {port: http}
  periodSeconds: 5
{{- else -}}
startupProbe:
  httpGet: {path: /healthz, port: http, scheme: {{ include "headrace.scheme" $root }}}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: http, scheme: {{ include "headrace.scheme" $root }}}
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: http, scheme: {{ include "headrace.scheme" $root }}}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end -}}
{{- end -}}
