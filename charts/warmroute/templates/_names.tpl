{{/* What things are called, what they are labelled with, and the configuration as it is mounted. */}}

{{- define "warmroute.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 56 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 56 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 56 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "warmroute.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "warmroute.labels" -}}
{{ include "warmroute.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "warmroute.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "warmroute.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "warmroute.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The Secrets that are mounted, as a list: folder, Secret, its keys by file, and the settings that name the files. */}}
{{- define "warmroute.mounts" -}}
{{- $mounts := list -}}
{{- range $value, $setting := dict "clientKeys" "gateway.keys_file" "operatorKeys" "admin.keys_file" "engineKey" "membership.api_key_file" "redisPassword" "admission.redis_password_file" -}}
{{- with index $.Values.secrets $value -}}
{{- if .name -}}
{{- $mounts = append $mounts (dict "folder" (kebabcase $value) "secret" .name "files" (dict "key" .key) "settings" (dict "key" $setting)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.tls.engineCa -}}
{{- if .name -}}
{{- $mounts = append $mounts (dict "folder" "engine-ca" "secret" .name "files" (dict "ca.crt" .key) "settings" (dict "ca.crt" "tls.engine_ca")) -}}
{{- end -}}
{{- end -}}
{{- with .Values.tls.secret -}}
{{- $files := dict "tls.crt" "tls.crt" "tls.key" "tls.key" -}}
{{- $mounts = append $mounts (dict "folder" "tls" "secret" . "files" $files "settings" (dict "tls.crt" "tls.certificate" "tls.key" "tls.key")) -}}
{{- end -}}
{{- toYaml $mounts -}}
{{- end -}}

{{/* `config` without the sections that are there and empty, to be looked into. */}}
{{- define "warmroute.given" -}}
{{- $given := dict -}}
{{- range $name, $section := .Values.config -}}
{{- if and $section (kindIs "map" $section) -}}
{{- range $key, $value := $section -}}
{{- if kindIs "invalid" $value -}}{{- $section = omit $section $key -}}{{- end -}}
{{- end -}}
{{- $_ := set $given $name $section -}}
{{- end -}}
{{- end -}}
{{- toYaml $given -}}
{{- end -}}

{{/* The configuration as the gateway reads it: `config`, and the settings that name mounted files. */}}
{{- define "warmroute.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- range include "warmroute.mounts" . | fromYamlArray -}}
{{- $folder := .folder -}}
{{- range $file, $setting := .settings -}}
{{- $place := splitList "." $setting -}}
{{- $section := default dict (index $config (index $place 0)) -}}
{{- if index $section (index $place 1) -}}
{{- fail (printf "config.%s is set, and so is the Secret whose file it would name: keep one of them" $setting) -}}
{{- end -}}
{{- $_ := set $section (index $place 1) (printf "/etc/warmroute/%s/%s" $folder $file) -}}
{{- $_ := set $config (index $place 0) $section -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "warmroute.clientScheme" -}}
{{- if or .Values.tls.secret (dig "tls" "certificate" "" (include "warmroute.given" . | fromYaml)) -}}HTTPS{{- else -}}HTTP{{- end -}}
{{- end -}}

{{- define "warmroute.adminScheme" -}}
{{- if dig "admin" "tls" false (include "warmroute.given" . | fromYaml) -}}HTTPS{{- else -}}HTTP{{- end -}}
{{- end -}}

{{/* Whether the gateway asks the API server for anything. */}}
{{- define "warmroute.asksApi" -}}
{{- if or (dig "discovery" "kubernetes" "enabled" false (include "warmroute.given" . | fromYaml)) (dig "discovery" "service" "name" "" (include "warmroute.given" . | fromYaml)) -}}true{{- else -}}false{{- end -}}
{{- end -}}

{{/* How long the gateway may take to end: until everybody knows, until answers are complete, and a margin. */}}
{{- define "warmroute.graceSeconds" -}}
{{- add .Values.preStopSeconds (ceil (dig "gateway" "drain_timeout_s" 30 (include "warmroute.given" . | fromYaml))) 10 -}}
{{- end -}}
