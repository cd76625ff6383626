{{/* The claim in the template's braces, with these: all else has to be a part of a host label. */}}
{{- define "workspace.templateClaim" -}}
{{- $template := .Values.nameTemplate -}}
{{- if not (kindIs "string" $template) -}}
{{- fail (printf "nameTemplate is a %s, and has to be a string, such as code-{sub}" (kindOf $template)) -}}
{{- end -}}
{{- $hint := "it is the host label of the template in the gateway's conf, such as code-{sub} or ws-{email}" -}}
{{- $claims := regexFindAll `\{[^{}]*\}` $template -1 -}}
{{- if ne (len $claims) 1 -}}
{{- fail (printf "nameTemplate %q has %d claims in braces, and needs one: %s" $template (len $claims) $hint) -}}
{{- end -}}
{{- $claim := first $claims -}}
{{- if not (regexMatch `\A\{[^{}\s]+\}\z` $claim) -}}
{{- fail (printf "nameTemplate %q names no claim in %q: %s" $template $claim $hint) -}}
{{- end -}}
{{- $own := replace $claim "" $template -}}
{{- if not (regexMatch `\A[-a-z0-9]*\z` $own) -}}
{{- fail (printf "nameTemplate %q has more than small letters, digits and - beside the claim: %s, without a scheme, a dot or a port" $template $hint) -}}
{{- end -}}
{{- if or (hasPrefix "-" $template) (hasSuffix "-" $template) -}}
{{- fail (printf "nameTemplate %q begins or ends with -, which no host label may" $template) -}}
{{- end -}}
{{- $claim -}}
{{- end -}}

{{/*
The name of a user's workspace: the label that kube-coders makes of a claim (crates/identity/src/label.rs).
What may not be changed here without changing it there, or users meet in one workspace or in none:
- "lower" only ever sees ASCII: it would turn the Kelvin sign and the dotted capital I into ASCII letters;
- the digest is the one of the value as it is;
- lengths are of bytes once only ASCII is left, of characters before.
*/}}
{{- define "workspace.name" -}}
{{- $subject := .Values.user.subject -}}
{{- if kindIs "invalid" $subject -}}
{{- fail "user.subject is missing: the workspace's name is made of it" -}}
{{- end -}}
{{- if not (kindIs "string" $subject) -}}
{{- fail (printf "user.subject is a %s, and has to be a string: put it in quotes, or use --set-string" (kindOf $subject)) -}}
{{- end -}}
{{- $length := len (regexFindAll "(?s)." $subject -1) -}}
{{- if or (lt $length 1) (gt $length 255) -}}
{{- fail (printf "user.subject has %d characters, and needs 1 to 255" $length) -}}
{{- end -}}
{{- $claim := include "workspace.templateClaim" . -}}
{{- $parts := splitn $claim 2 .Values.nameTemplate -}}
{{- $prefix := $parts._0 -}}
{{- $suffix := $parts._1 -}}
{{- $own := add (len $prefix) (len $suffix) -}}
{{- if gt $own 27 -}}
{{- fail (printf "nameTemplate has %d bytes of its own, and 27 are allowed there" $own) -}}
{{- end -}}
{{- $room := sub 63 $own -}}
{{- $label := $subject -}}
{{- $isPlain := and (regexMatch `\A[a-z0-9]([-a-z0-9]*[a-z0-9])?\z` $subject) (not (contains "---" $subject)) (le (len $subject) (int $room)) -}}
{{- if not $isPlain -}}
{{- $ascii := regexReplaceAll "[^A-Za-z0-9]+" $subject "-" | lower | trimAll "-" -}}
{{- $readable := $ascii | trunc (int (sub $room 35)) | trimAll "-" | default "x" -}}
{{- $label = printf "%s---%s" $readable (sha256sum $subject | trunc 32) -}}
{{- end -}}
{{- $name := printf "%s%s%s" $prefix $label $suffix -}}
{{- if not (regexMatch `\A[a-z]` $name) -}}
{{- fail (printf "the name %q starts with a digit, which a Service's may not: begin nameTemplate, and the template in the gateway's conf, with a letter" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "workspace.selectorLabels" -}}
app.kubernetes.io/name: workspace
app.kubernetes.io/instance: {{ include "workspace.name" . }}
{{- end -}}

{{- define "workspace.labels" -}}
{{ include "workspace.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: {{ .Values.role }}
app.kubernetes.io/part-of: kube-coders
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* A subject is no legal label, so it stands in an annotation. "quote" escapes whatever YAML could take for its own. */}}
{{- define "workspace.annotations" -}}
kube-coders/subject: {{ .Values.user.subject | quote }}
{{- end -}}

{{- define "workspace.claimName" -}}
{{- if .Values.persistence.existingClaim -}}
{{- .Values.persistence.existingClaim -}}
{{- else -}}
{{- .Values.persistence.claimName | default (include "workspace.name" .) -}}
{{- end -}}
{{- end -}}

{{- define "workspace.image" -}}
{{- $image := get .Values.images .Values.role -}}
{{- if not $image -}}
{{- fail (printf "role %q has no image: images has %s" .Values.role (keys .Values.images | sortAlpha | join ", ")) -}}
{{- end -}}
{{- printf "%s:%s" $image.repository $image.tag -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* What both containers may do and see. */}}
{{- define "workspace.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  capabilities:
    drop:
      - ALL
volumeMounts:
  - name: home
    mountPath: /home/coder
  - name: tmp
    mountPath: /tmp
{{- end -}}
