{{/*
What a workspace is protected by has to be there. Helm takes away what is null, a default too, and only then asks the
schema, which it can be told to skip; a policy's list that is missing excepts nothing, a selector's selects everything.
*/}}
{{- define "workspace.check" -}}
{{- $needed := list "auth.mode" "auth.hashed" "auth.secretKey" "server.bindAddress" "server.folder" "tmpSize"
      "resources.limits.memory" "networkPolicy.enabled" "networkPolicy.gateway.namespaceLabels"
      "networkPolicy.gateway.podLabels" "networkPolicy.egress.restricted" "networkPolicy.egress.internet"
      "networkPolicy.egress.dns.namespaceLabels" "networkPolicy.egress.dns.podLabels"
      "networkPolicy.egress.exceptIPv4" "networkPolicy.egress.exceptIPv6" -}}
{{- range $path := $needed -}}
{{- $value := $.Values -}}
{{- range $key := splitList "." $path -}}
{{- if kindIs "map" $value -}}
{{- $value = index $value $key -}}
{{- else -}}
{{- $value = "" -}}
{{- end -}}
{{- end -}}
{{- if and (not (kindIs "bool" $value)) (empty $value) -}}
{{- fail (printf "%s is missing or empty: null takes a default away; leave the key out, or give it a value" $path) -}}
{{- end -}}
{{- end -}}
{{- $gateway := .Values.networkPolicy.gateway -}}
{{- if not (hasKey $gateway.namespaceLabels "kubernetes.io/metadata.name") -}}
{{- fail "networkPolicy.gateway.namespaceLabels lacks kubernetes.io/metadata.name, the only label that nobody can give another namespace" -}}
{{- end -}}
{{- if not (hasKey $gateway.podLabels "app.kubernetes.io/name") -}}
{{- fail "networkPolicy.gateway.podLabels lacks app.kubernetes.io/name: what else is in the gateway's namespace would be admitted with it" -}}
{{- end -}}
{{- $egress := .Values.networkPolicy.egress -}}
{{- $inside := dict
      "exceptIPv4" (list "10.0.0.0/8" "172.16.0.0/12" "192.168.0.0/16" "100.64.0.0/10" "169.254.0.0/16" "127.0.0.0/8"
        "192.0.0.0/24" "198.18.0.0/15" "240.0.0.0/4" "168.63.129.16/32")
      "exceptIPv6" (list "fc00::/7" "fe80::/10") -}}
{{- /* Where nothing but DNS may be reached, or everything, the lists except nothing. */ -}}
{{- range $key, $ranges := ternary $inside (dict) (and $egress.restricted $egress.internet) -}}
{{- range $range := $ranges -}}
{{- if not (has $range (index $egress $key)) -}}
{{- fail (printf "networkPolicy.egress.%s lacks %s: a list of your own takes the place of values.yaml's, so copy that one and add to it; what a workspace has to reach goes into networkPolicy.egress.extra" $key $range) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $egress.extra -}}
{{- if not .to -}}
{{- fail "networkPolicy.egress.extra has a rule without `to`, which would let a workspace connect to anything" -}}
{{- end -}}
{{- end -}}
{{- range .Values.env -}}
{{- if has .name (list "HOME" "PASSWORD" "HASHED_PASSWORD" "PORT" "CODE_SERVER_HOST" "CODE_SERVER_CONFIG") -}}
{{- fail (printf "env has %s, which the chart or code-server's flags set: see the chart's README" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
