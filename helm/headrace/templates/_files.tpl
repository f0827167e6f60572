{{/* Files that config names, and which kinds of pods read them. As JSON: {"in": [...]} of each path in config. */}}
{{- define "headrace.readers" -}}
{{- $everybody := list "router" "worker" "control-plane" -}}
{{- $readers := dict
  "identity.keys_file" (list "router" "control-plane")
  "identity.salt_secret_file" (list "router")
  "identity.jwt.jwks_file" (list "router")
  "admin.tokens_file" (list "router" "control-plane")
  "admin.tls.cert_file" (list "control-plane")
  "admin.tls.key_file" (list "control-plane")
  "engine.tls.cert_file" (list "worker")
  "engine.tls.key_file" (list "worker")
  "engine.tls.client_ca_file" (list "worker")
-}}
{{- range list "redis.password_file" "redis.tls_ca_path" "redis.tls_cert_path" "redis.tls_key_path" "engine.tls.ca_file" "engine.tls.client_cert_file" "engine.tls.client_key_file" -}}
  {{- $_ := set $readers . $everybody -}}
{{- end -}}
{{- range list "http" "grpc" "endpoint_picker" -}}
  {{- $door := . -}}
  {{- range list "cert_file" "key_file" "client_ca_file" -}}
    {{- $_ := set $readers (printf "router.%s.tls.%s" $door .) (list "router") -}}
  {{- end -}}
{{- end -}}
{{- $readers | toJson -}}
{{- end -}}

{{/* Each such file is in a volume of every pod that reads it. */}}
{{- define "headrace.checkFiles" -}}
{{- $config := include "headrace.config" . | fromJson -}}
{{- range $setting, $readers := include "headrace.readers" . | fromJson -}}
  {{- $file := $config -}}
  {{- range splitList "." $setting -}}
    {{- if kindIs "map" $file -}}{{- $file = get $file . -}}{{- else -}}{{- $file = "" -}}{{- end -}}
  {{- end -}}
  {{- if $file -}}
    {{- include "headrace.checkFile" (dict "root" $ "setting" $setting "file" $file "readers" $readers) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{- define "headrace.checkFile" -}}
{{- $what := printf "config.%s is %s" .setting .file -}}
{{- $readers := join ", " .readers -}}
{{- if hasPrefix "/run/secrets/headrace/" .file -}}
  {{- $key := index (splitList "/" .file) 4 -}}
  {{- $files := get .root.Values.secrets $key -}}
  {{- if not $files -}}
    {{- fail (printf "%s, so secrets.%s has to name the Secret: {secret: ..., in: [%s]}" $what $key $readers) -}}
  {{- end -}}
  {{- range .readers -}}
    {{- if not (has . ($files.in | default (list "router" "control-plane"))) -}}
      {{- fail (printf "%s, so secrets.%s.in has to have %s: [%s] read it" $what $key . $readers) -}}
    {{- end -}}
  {{- end -}}
{{- else if not (or (regexMatch "^/(models|usr|etc/ssl|etc/pki)/" .file) (and (hasPrefix "/run/secrets/redis/" .file) (include "headrace.redisSecret" .root))) -}}
  {{- fail (printf "%s, which no pod has: with secrets.files: {secret: ..., in: [%s]} it would be /run/secrets/headrace/files/%s" $what $readers (base .file)) -}}
{{- end -}}
{{- end -}}
