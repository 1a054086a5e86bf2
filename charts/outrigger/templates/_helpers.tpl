{{- define "outrigger.name" -}}outrigger-control-plane{{- end -}}

{{- define "outrigger.tag" -}}{{ .Values.image.tag | default .Chart.AppVersion }}{{- end -}}

{{- define "outrigger.image" -}}{{ .Values.image.prefix }}/control-plane:{{ include "outrigger.tag" . }}{{- end -}}

{{- define "outrigger.proxyImage" -}}{{ .Values.image.prefix }}/proxy:{{ include "outrigger.tag" . }}{{- end -}}

{{- define "outrigger.selector" -}}
app.kubernetes.io/name: outrigger
app.kubernetes.io/component: control-plane
{{- end -}}

{{- define "outrigger.labels" -}}
{{ include "outrigger.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "outrigger.cniSelector" -}}
app.kubernetes.io/name: outrigger
app.kubernetes.io/component: cni
{{- end -}}

{{- define "outrigger.cniLabels" -}}
{{ include "outrigger.cniSelector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "outrigger.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "outrigger.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What pods are injected with, as the control plane reads it. */}}
{{- define "outrigger.inject" -}}
{{- $settings := dict
    "image" (include "outrigger.proxyImage" .)
    "imagePullPolicy" .Values.image.pullPolicy
    "controlPlane" (printf "https://%s.%s.svc.%s:4780" (include "outrigger.name" .) .Release.Namespace .Values.mesh.clusterDomain)
    "clusterDomain" .Values.mesh.clusterDomain
    "mode" .Values.proxy.mode
    "logLevel" .Values.proxy.log
    "resources" .Values.proxy.resources
    "skipOutboundNetworks" .Values.proxy.skipOutboundNetworks
    "skipOutboundPorts" .Values.proxy.skipOutboundPorts
    "skipInboundPorts" .Values.proxy.skipInboundPorts }}
{{- toPrettyJson $settings }}
{{- end }}

{{/* A file of rules, with what the values say in place of what stands in it: [root, path]. */}}
{{- define "outrigger.rules" -}}
{{- $root := index . 0 }}
{{- with $root.Values.monitoring.rules }}
{{- $root.Files.Get (index $ 1)
    | replace "owner: platform" (printf "owner: %q" .owner)
    | replace "https://outrigger.dev/docs/runbooks.md" .runbooks
    | replace "vector(99.9)" (printf "vector(%v)" .objective) }}
{{- end }}
{{- end }}

{{/* Names targets by their pods, and apps as traces do (docs/monitoring.md). */}}
{{- define "outrigger.relabelings" -}}
- {sourceLabels: [__meta_kubernetes_pod_name], targetLabel: instance}
- {sourceLabels: [__meta_kubernetes_pod_name], targetLabel: app}
- {sourceLabels: [__meta_kubernetes_pod_label_app], regex: (.+), targetLabel: app}
- {sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_name], regex: (.+), targetLabel: app}
{{- end -}}
