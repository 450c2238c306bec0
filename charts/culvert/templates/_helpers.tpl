{{- define "culvert.selectorLabels" -}}
app.kubernetes.io/name: culvert
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "culvert.labels" -}}
{{ include "culvert.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "culvert.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}

{{- /* Every container of ours: nothing but what it is given. */ -}}
{{- define "culvert.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
seccompProfile:
  type: RuntimeDefault
capabilities:
  drop: [ALL]
  {{- with .add }}
  add: {{ toJson . }}
  {{- end }}
{{- end }}

{{- define "culvert.apiServer" -}}
{{- with .Values.apiServer }}
{{- if .host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Where kubelet reaches the agent: from the node itself. */ -}}
{{- define "culvert.probe" -}}
httpGet:
  {{- /* Without a host kubelet asks the pod's address, which is the node's. */}}
  {{- if ne .Values.http.address "node" }}
  host: {{ if eq .Values.http.address "0.0.0.0" }}127.0.0.1{{ else }}{{ .Values.http.address }}{{ end }}
  {{- end }}
  port: {{ .Values.http.port }}
{{- end }}
