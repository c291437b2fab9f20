{{/* What things are called, what they are labelled with, and how the engine is started. */}}

{{- define "model.fullname" -}}
{{- default .Release.Name .Values.nameOverride | trunc 56 | trimSuffix "-" -}}
{{- end -}}

{{- define "model.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: engine
{{- end -}}

{{- define "model.labels" -}}
{{ include "model.selectorLabels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* By these a gateway finds a pod and learns what it is. */}}
{{- define "model.discoveryLabels" -}}
{{- $prefix := .Values.labelPrefix -}}
{{ $prefix }}/name: {{ .Values.model.name | quote }}
{{ $prefix }}/port: {{ int .Values.model.port | quote }}
{{- if .Values.model.kvEvents.enabled }}
{{ $prefix }}/kv-events-enabled: "true"
{{- end }}
{{- with .Values.model.loraId }}
{{ $prefix }}/lora-id: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "model.discoveryAnnotations" -}}
{{- with .Values.model -}}
{{- if .kvEvents.enabled -}}
warmroute.dev/events-port: {{ int .kvEvents.eventPort | quote }}
warmroute.dev/replay-port: {{ int .kvEvents.replayPort | quote }}
{{- with .kvEvents.topic }}
warmroute.dev/topic: {{ . | quote }}
{{- end }}
{{ end -}}
warmroute.dev/data-parallel-size: {{ int .dataParallelSize | quote }}
{{- with .weight }}
warmroute.dev/weight: {{ . | toString | quote }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* What vLLM itself would only find out when its second rank cannot bind. */}}
{{- define "model.checkPorts" -}}
{{- with .Values.model -}}
{{- $events := int .kvEvents.eventPort -}}
{{- $replay := int .kvEvents.replayPort -}}
{{- $ranks := int .dataParallelSize -}}
{{- if and .kvEvents.enabled (lt $replay (add $events $ranks | int)) (lt $events (add $replay $ranks | int)) -}}
{{- fail (printf "model.kvEvents.replayPort %d lies among the ports of %d ranks, which count up from eventPort %d: rank r is at port + r. Leave room, for example %d." $replay $ranks $events (add $events (max 10 $ranks))) -}}
{{- end -}}
{{- range $name, $first := dict "eventPort" $events "replayPort" $replay -}}
{{- if and $.Values.model.kvEvents.enabled (le $first (int $.Values.model.port)) (gt (add $first $ranks | int) (int $.Values.model.port)) -}}
{{- fail (printf "model.port %d lies among the ports that count up from model.kvEvents.%s %d" (int $.Values.model.port) $name $first) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The one switch that vLLM's releases have for their events. */}}
{{- define "model.kvEventsConfig" -}}
{{- with .Values.model.kvEvents -}}
{{- $config := dict "enable_kv_cache_events" true "publisher" .publisherType "buffer_steps" (int .bufferSteps) -}}
{{- $_ := set $config "endpoint" (printf "tcp://*:%d" (int .eventPort)) -}}
{{- $_ := set $config "replay_endpoint" (printf "tcp://*:%d" (int .replayPort)) -}}
{{- if .topic -}}{{- $_ := set $config "topic" .topic -}}{{- end -}}
{{- if .highWaterMark -}}{{- $_ := set $config "hwm" (int .highWaterMark) -}}{{- end -}}
{{- toJson $config -}}
{{- end -}}
{{- end -}}

{{- define "model.vllmArgs" -}}
{{- with .Values.model -}}
{{- $args := list (default .name .source) "--served-model-name" .name "--host" "0.0.0.0" "--port" (int .port | toString) -}}
{{- if gt (int .dataParallelSize) 1 -}}{{- $args = concat $args (list "--data-parallel-size" (int .dataParallelSize | toString)) -}}{{- end -}}
{{- if .reportCachedTokens -}}{{- $args = append $args "--enable-prompt-tokens-details" -}}{{- end -}}
{{- if .kvEvents.enabled -}}{{- $args = concat $args (list "--enable-prefix-caching" "--kv-events-config" (include "model.kvEventsConfig" $)) -}}{{- end -}}
{{- if .loras -}}
{{- $args = concat $args (list "--enable-lora" "--max-loras" (len .loras | toString) "--lora-modules") -}}
{{- range .loras -}}{{- $args = append $args (printf "%s=%s" .name .path) -}}{{- end -}}
{{- end -}}
{{- toYaml (concat $args .extraArgs) -}}
{{- end -}}
{{- end -}}

{{- define "model.simulatedArgs" -}}
{{- with .Values.model -}}
{{- $args := list "engine" "--model" .name "--host" "0.0.0.0" "--port" (int .port | toString) "--data-parallel-size" (int .dataParallelSize | toString) -}}
{{- if not .reportCachedTokens -}}{{- $args = append $args "--no-prompt-tokens-details" -}}{{- end -}}
{{- if .kvEvents.enabled -}}
{{- $args = concat $args (list "--events-port" (int .kvEvents.eventPort | toString) "--replay-port" (int .kvEvents.replayPort | toString) "--buffer-steps" (int .kvEvents.bufferSteps | toString)) -}}
{{- with .kvEvents.topic -}}{{- $args = concat $args (list "--topic" .) -}}{{- end -}}
{{- else -}}
{{- $args = append $args "--no-events" -}}
{{- end -}}
{{- range .loras -}}{{- $args = concat $args (list "--lora" .name) -}}{{- end -}}
{{- toYaml (concat $args .extraArgs) -}}
{{- end -}}
{{- end -}}

{{/* The ports of all ranks, as a list: name and port. */}}
{{- define "model.eventPorts" -}}
{{- $ports := list -}}
{{- with .Values.model -}}
{{- if .kvEvents.enabled -}}
{{- range $rank := until (int .dataParallelSize) -}}
{{- $suffix := ternary "" (printf "-%d" $rank) (eq $rank 0) -}}
{{- $ports = append $ports (dict "name" (printf "kv-events%s" $suffix) "port" (add (int $.Values.model.kvEvents.eventPort) $rank)) -}}
{{- $ports = append $ports (dict "name" (printf "kv-replay%s" $suffix) "port" (add (int $.Values.model.kvEvents.replayPort) $rank)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $ports -}}
{{- end -}}
