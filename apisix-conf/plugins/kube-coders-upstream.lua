-- SPDX-License-Identifier: Apache-2.0
-- Sends a request to the workspace that the runner chose for it.
-- The runner, called by ext-plugin-pre-req, says where a request goes in a header that it adds: JSON, see `fault`. A
-- client's own copy is dropped in the rewrite phase, behind openid-connect (2599) and before the call (2597, by its
-- _meta.priority). Without a good decision the answer is 503: no request reaches the route's own upstream. It
-- is 431 if the gateway hides a cookie from the runner, which could not remove it.
--
-- With `remember`, a decision is cached for so many seconds and serves later requests with an equal cache key: its
-- changes are made in the rewrite phase, as a call makes them, and ext-plugin-pre-req is skipped. A decision names the
-- parts of its key and a digest of them; it is cached only if they were the same here and at the runner.
-- A workspace's response may not speak for the gateway: see `filter_response`.
-- While it is cached, revoked sessions, tokens, groups and workspaces keep working, in each of the gateway's workers.
local core, upstream, plugin = require("apisix.core"), require("apisix.upstream"), require("apisix.plugin")
local lrucache, sha256 = require("resty.lrucache"), require("resty.sha256")
local ngx, concat, find = ngx, table.concat, string.find

local HEADER, HEADER_VAR, MAX_BYTES = "x-kube-coders-upstream", "http_x_kube_coders_upstream", 16 * 1024
local PROBLEMS = {
    [403] = '"title":"Forbidden","status":403,"code":"worker-refused"',
    [431] = '"title":"Request Header Fields Too Large","status":431,"code":"too-many-headers"',
    [503] = '"title":"Service Unavailable","status":503,"code":"decision-missing"',
}
-- Response headers with which a workspace would speak for all that is at the gateway's origin.
local ORIGIN_HEADERS = { "Alt-Svc", "Clear-Site-Data", "NEL", "Report-To", "Reporting-Endpoints",
    "Sec-Session-Registration", "Secure-Session-Registration", "Service-Worker-Allowed", "Set-Login",
    "Strict-Transport-Security" }
-- What says for how long a browser may keep a response, and the types that no browser opens as a document with scripts.
local CACHING = { "Cache-Control", "Expires", "Pragma" }
local INERT = { ["application/javascript"] = true, ["application/json"] = true, ["application/wasm"] = true,
    ["application/manifest+json"] = true, ["application/octet-stream"] = true, ["application/x-javascript"] = true,
    ["text/css"] = true, ["text/javascript"] = true, ["text/x-javascript"] = true }
local MEDIA = { audio = true, font = true, image = true, video = true }
local COOKIE, OWN_COOKIE = "Set-Cookie", "^__host%-kube%-coders" -- of ours, in lower case
local decisions, keys = lrucache.new(2000), lrucache.new(200) -- of this worker
local schema = { type = "object", additionalProperties = false, properties = { remember = {
    description = "seconds for which a decision is cached, while what was revoked keeps working",
    type = "number", minimum = 0, maximum = 10, default = 0 } } }

local function is_text(value, pattern) return type(value) == "string" and find(value, pattern) ~= nil end
local function is_value(value) return is_text(value, "^[^%z\r\n]+$") end
local function is_header(value) return is_text(value, "^[a-z0-9-]+$") end
local function is_changeable(name) return is_header(name) and name ~= "content-length" and name ~= HEADER end
local function is_cookie(value) return is_text(value, "^[%w!#$%%&'*+%-.^_`|~]+$") end
local function is_between(value, from, to) return type(value) == "number" and value >= from and value <= to end
local function is_time(value) return is_between(value, 0.001, 86400) end
local function is_address(value)
    -- The C function behind these would stop at a NUL.
    return is_text(value, "^[%x:.]+$") and (core.utils.parse_ipv4(value) or core.utils.parse_ipv6(value))
end
local function is_host(value)
    local is_name = is_text(value, "^[a-z0-9_][a-z0-9_.-]*$") and #value <= 253 and not find(value .. ".", "[.-]%.")
    local last = is_name and value:match("[^.]*$") -- where a number would make it nearly an IPv4 address
    local is_good = is_name and not find(value, ".-", 1, true)
    return is_good and not find(last, "^%d+$") and not find(last, "^0x%x*$") or is_address(value)
end
-- A list whose items are all good, or with `is_key` an object whose names are, too.
local function is_each(items, most, is_item, is_key)
    local count = 0
    for key, item in pairs(type(items) == "table" and items or {}) do
        if not is_item(item) or is_key and not is_key(key) then return false end
        count = count + 1
    end
    return type(items) == "table" and count <= most and (is_key or count == #items)
end

local function fault(it) -- the field that makes a decision malformed, or nil
    if type(it) ~= "table" or it.v ~= 1 then return "no object with v 1" end
    if it.scheme ~= "http" and it.scheme ~= "https" then return "scheme" end
    if not is_host(it.host) then return "host" end
    if not is_between(it.port, 1, 65535) or it.port % 1 ~= 0 then return "port" end
    if not is_each(it.addresses, 8, is_address) or #it.addresses == 0 then return "addresses" end
    local time = type(it.timeout) == "table" and it.timeout or {}
    if not (is_time(time.connect) and is_time(time.send) and is_time(time.read)) then return "timeout" end
    if it.removed_cookies ~= nil and not is_each(it.removed_cookies, 128, is_cookie) then return "removed_cookies" end
    local cache = it.cache
    if cache == nil then return nil end
    if type(cache) ~= "table" then return "cache" end
    if not is_between(cache.seconds, 0, 10) or cache.seconds == 0 then return "cache.seconds" end
    if not is_each(cache.headers, 32, is_header) then return "cache.headers" end
    if not is_each(cache.presence, 32, is_header) then return "cache.presence" end
    if type(cache.navigation) ~= "boolean" then return "cache.navigation" end
    if not is_text(cache.digest, "^[0-9a-f]+$") or #cache.digest ~= 64 then return "cache.digest" end
    if not is_each(cache.set, 32, is_value, is_changeable) then return "cache.set" end
    if not is_each(cache.remove, 32, is_changeable) then return "cache.remove" end
    if not is_each(cache.cookies, 128, is_cookie) then return "cache.cookies" end
end

local function each(values) return type(values) == "table" and values or { values } end
local function sized(value) return #tostring(value) .. ":" .. tostring(value) end -- says where it ends

-- The gateway makes the call from a table of the client's first 100 lines, less those that plugins removed since, and
-- nginx sends all lines on. Cookies, and names that software reads as other ones, must not pass the runner by.
local function hides_lines(headers, known)
    for name, value in pairs(headers) do
        local is_watched = name == "cookie" or find(name, "_", 1, true)
        if is_watched and #each(value) > #each(rawget(known, name)) then return true end
    end
end

-- What the runner is about to see of a request, or an empty table if nothing is cached for it. Not from variables:
-- $http_x_userinfo is X_Userinfo where X-Userinfo is missing.
local function see(ctx, headers)
    local count = 0
    for name, value in pairs(headers) do
        if find(name, "_", 1, true) then return {} end
        count = count + #each(value)
    end
    -- The runner refuses so many, unless lines are hidden from it.
    if count > 99 then return {} end
    local scope = sized(ctx.route_id) .. sized(ctx.conf_type) .. sized(ctx.conf_id) .. sized(ctx.conf_version)
    scope = scope .. sized(ngx.var.scheme) .. sized(ngx.var.upstream_host) .. sized(rawget(headers, "upgrade") ~= nil)
    if #scope > 1000 then return {} end -- a client may say any host
    return { headers = headers, scope = scope, now = ngx.now() }
end

local function is_navigation(headers) -- as the runner reads it: crates/runner/src/accept.rs
    local accept = each(rawget(headers, "accept"))[1]
    if ngx.req.get_method() ~= "GET" or rawget(headers, "upgrade") or not accept then return false end
    for item in (accept:lower():gsub("[ \t\n\f\r]", " ") .. ","):gmatch("([^,]*),") do
        local range, parameters = item:match("^ *([^;]*)(.*)$")
        -- Greedy: from each space on, a pattern for spaces at the end would look at all that follow.
        local weight = (parameters:match("; *q *= *([^;]*)") or "1"):match("^.*[^ ]") or ""
        local is_weight = find(weight, "^[01]$") or find(weight, "^[01]%.%d?%d?%d?$")
        if find(range, "^text/html *$") and is_weight and is_between(tonumber(weight), 0.001, 1) then return true end
    end
    return false
end

-- Equal for two requests only if all parts of the key are. The runner computes it: crates/runner/src/cache/digest.rs
local function digest_of(headers, key)
    local kind = not key.navigation and "any;" or is_navigation(headers) and "navigation;" or "other;"
    local parts = { "1;", #key.headers, ";", #key.presence, ";", kind }
    for _, name in ipairs(key.headers) do
        local values = each(rawget(headers, name))
        parts[#parts + 1] = sized(name) .. #values .. ";"
        for _, value in ipairs(values) do parts[#parts + 1] = sized(value) end
    end
    for _, name in ipairs(key.presence) do parts[#parts + 1] = sized(name) .. (rawget(headers, name) and "+" or "-") end
    local digest = sha256:new()
    return assert(digest:update(concat(parts)) and digest:final())
end

local function is_removed(pair, names)
    local name = pair:match("^[ \t\n\f\r]*([^=]*)"):match("^.*[^ \t\n\f\r]") or ""
    for _, removed in ipairs(names) do
        local rest = name:sub(1, #removed) == removed and name:sub(#removed + 1)
        if rest and (rest == "" or find(rest, "^_?%d+$")) then return true end
    end
end

local function remove_cookies(ctx, names) -- as the runner does: crates/runner/src/cookies.rs
    local text, is_edited = "", false
    for _, header in ipairs(each(ngx.req.get_headers(0).cookie)) do
        local kept = {}
        for pair in (header .. ";"):gmatch("([^;]*);") do
            if is_removed(pair, names) then is_edited = true else kept[#kept + 1] = pair end
        end
        local left = concat(kept, ";"):match("^[ \t\n\f\r]*(.*)")
        if kept[1] then text = text == "" and left:match("^;*(.*)") or text .. "; " .. left end
    end
    if find(text, "[%z\r\n]") or not find(text, "[^ \t;]") then text = nil end
    if is_edited then core.request.set_header(ctx, "cookie", text) end
end

local function apply(ctx, it)
    local function bracketed(host) return find(host, ":", 1, true) and "[" .. host .. "]" or host end
    local name, is_https, nodes, addresses = bracketed(it.host), it.scheme == "https", {}, { unpack(it.addresses) }
    for i, a in ipairs(it.addresses) do nodes[i] = { host = bracketed(a), port = it.port, weight = 1, priority = 0 } end
    -- The balancer keeps what it makes of several nodes under key and version; a name server turns the addresses.
    table.sort(addresses)
    upstream.set(ctx, it.scheme .. "://" .. name .. ":" .. it.port, ctx.conf_version .. "#" .. concat(addresses, ","), {
        type = "roundrobin", scheme = it.scheme, nodes = nodes,
        timeout = { connect = it.timeout.connect, send = it.timeout.send, read = it.timeout.read },
        pass_host = is_https and "rewrite" or "pass", upstream_host = is_https and name or nil, -- TLS's name is Host's
    })
    ctx.upstream_scheme, ctx.var.upstream_scheme = it.scheme, it.scheme -- only set for the gateway's own choice
end

local function change(ctx, cache) -- what the call would have changed
    for _, header in ipairs(cache.remove) do core.request.set_header(ctx, header, nil) end
    for header, value in pairs(cache.set) do core.request.set_header(ctx, header, value) end
    if cache.set.host then ctx.var.upstream_host = cache.set.host end -- what goes upstream is not the header
    if #cache.cookies > 0 then remove_cookies(ctx, cache.cookies) end
end

-- What the gateway and its plugins answer with themselves, such as a renewed session: it stays.
local function own_headers()
    local own = { [COOKIE] = ngx.header[COOKIE] }
    for _, name in ipairs(ORIGIN_HEADERS) do own[name] = ngx.header[name] end
    return own
end

-- A workspace's cookie as browsers may get it: not for other hosts of the domain; nil for one that the gateway reads.
local function filter_cookie(cookie, names)
    local pair, rest = cookie:match("^([^;]*)(.*)$")
    -- A cookie without a name is sent back as its value, which may look like a name and a value.
    pair = pair:match("^[=%s]*(.*)$")
    if is_removed(pair, names) or find(pair:lower(), OWN_COOKIE) then return nil end
    local kept = {}
    for attribute in rest:gmatch(";([^;]*)") do
        if not find(attribute:lower(), "^%s*domain%s*=") and not find(attribute:lower(), "^%s*domain%s*$") then
            kept[#kept + 1] = ";" .. attribute
        end
    end
    return cookie:match("^[^;]*") .. concat(kept)
end

-- A browser has to ask for each document: one from its cache would be the last user's. What is only part of a document
-- is kept as the workspace says. As the forwarder does it: src/forwarder/http/document_caching.rs
local function limit_caching()
    local status, header, is_kept = ngx.status, ngx.header, false
    for _, line in ipairs(status ~= 304 and each(header["Cache-Control"]) or {}) do
        -- Between quotes, a word is not a directive.
        local words = not find(line, '"', 1, true) and "," .. line:lower():gsub("%s", "") .. "," or ""
        if find(words, ",no-store,", 1, true) then return end
    end
    for _, name in ipairs({ "Last-Modified", unpack(CACHING) }) do is_kept = is_kept or header[name] ~= nil end
    local is_lasting = status == 300 or status == 301 or status == 308 or status == 410
    if not (is_kept or is_lasting) then return end
    local kind = header["Content-Type"]
    if is_text(kind, "^[^,]*$") and not header["Refresh"] and (status < 300 or status >= 400) and not is_lasting then
        kind = kind:lower():match("^%s*([^;]*)"):match("^(.-)%s*$")
        local family = kind:match("^(%l+)/")
        if INERT[kind] or family and MEDIA[family] and not find(kind, "^image/svg") then return end
    end
    for _, name in ipairs(CACHING) do header[name] = nil end
    -- A 304 changes how long the browser keeps what it has, and does not say what that is.
    if status ~= 304 then header["Cache-Control"] = "no-cache" end
end

local function filter_response(_, ctx)
    local answer = ctx.kube_coders_answer
    if not answer then return end
    for _, name in ipairs(ORIGIN_HEADERS) do
        if ngx.header[name] ~= nil then ngx.header[name] = answer.own[name] end
    end
    limit_caching()
    if ngx.header[COOKIE] == nil then return end
    local own, cookies = {}, {}
    for _, cookie in ipairs(each(answer.own[COOKIE])) do own[cookie] = (own[cookie] or 0) + 1 end
    for _, cookie in ipairs(each(ngx.header[COOKIE])) do
        local is_own = (own[cookie] or 0) > 0
        if is_own then own[cookie] = own[cookie] - 1 end
        cookies[#cookies + 1] = is_own and cookie or filter_cookie(cookie, answer.names)
    end
    ngx.header[COOKIE] = cookies
end

local function rewrite(conf, ctx)
    -- In a variable's name an underscore is a hyphen, too, as it is to other software.
    for name in pairs(ngx.var[HEADER_VAR] and ngx.req.get_headers(0, true) or {}) do
        if name:lower():gsub("_", "-") == HEADER then core.request.set_header(ctx, name, nil) end
    end
    if ngx.var[HEADER_VAR] then return "a client's decision can't be dropped" end
    local headers = ngx.req.get_headers(0)
    if hides_lines(headers, core.request.headers(ctx)) then return "the runner would not see all header lines", 431 end
    -- A service worker of the whole origin, or of the editor's port proxy, would answer the browser's next user.
    if is_text(rawget(headers, "service-worker"), "^%s*[Ss][Cc][Rr][Ii][Pp][Tt]%s*$") then
        local path = ngx.var.request_uri:gsub("%?.*", "")
        if not find(path, "/.*/") or find(path, "^/proxy/") or find(path, "^/absproxy/") then
            return "a service worker for addresses that other users open", 403
        end
    end
    -- APISIX has skip_plugin from 3.18 on.
    local caches = (conf.remember or 0) > 0 and plugin.skip_plugin and not ctx.consumer
    local seen = caches and see(ctx, headers) or {}
    local key = seen.scope and keys:get(seen.scope)
    local entry = key and decisions:get(digest_of(seen.headers, key) .. seen.scope)
    local age = entry and seen.now - entry.since or -1
    -- Below 0 where the clock was set back, which must not make a decision last.
    if age >= 0 and age < math.min(conf.remember, entry.decision.cache.seconds) then
        seen.cached, ctx.var.kc_hit = entry.decision, "1"
        plugin.skip_plugin(ctx, "ext-plugin-pre-req")
        change(ctx, entry.decision.cache)
    end
    ctx.kube_coders_upstream = seen
end

local function access(_, ctx)
    local seen, is_new = ctx.kube_coders_upstream, ngx.var[HEADER_VAR] ~= nil
    ctx.kube_coders_upstream = nil
    if not seen then return "the rewrite phase did not run" end
    local it = seen.cached
    if is_new then
        local text = rawget(ngx.req.get_headers(0), HEADER)
        core.request.set_header(ctx, HEADER, nil)
        if type(text) ~= "string" or ngx.var[HEADER_VAR] then return "more than one decision" end
        if #text > MAX_BYTES then return "too long a decision" end
        it = core.json.decode(text)
        local field = fault(it)
        if field then return "a malformed decision: " .. field end
    end
    if not it then return "no decision" end
    apply(ctx, it)
    local cache = it.cache
    ctx.kube_coders_answer = { own = own_headers(), names = it.removed_cookies or cache and cache.cookies or {} }
    if not is_new then
        local headers = ngx.req.get_headers(0)
        for _, header in ipairs(cache.remove) do
            -- A login behind this plugin may have found another user, and the runner did not decide about them.
            if rawget(headers, header) then return "a header that was removed is there again: " .. header end
        end
        return nil
    end
    -- A consumer, found in between, may bring plugins of its own.
    if not cache or #cache.headers + #cache.presence == 0 or not seen.scope or ctx.consumer then return end
    local digest = digest_of(seen.headers, cache)
    local hex = digest:gsub(".", function(byte) return ("%02x"):format(byte:byte()) end)
    -- A login behind this plugin, or another plugin, has changed what the runner saw.
    if hex ~= cache.digest then
        core.log.info("kube-coders-upstream: not cached: the request was changed")
        return
    end
    keys:set(seen.scope, cache)
    decisions:set(digest .. seen.scope, { decision = it, since = seen.now }) -- nothing else holds these tables
end

local function guarded(phase)
    return function(conf, ctx)
        local ok, wrong, status = pcall(phase, conf, ctx)
        if ok and not wrong then return end
        -- A client can cause these as often as it likes.
        local log = status and core.log.info or core.log.error
        log("kube-coders-upstream: ", ok and wrong or "failed: " .. tostring(wrong))
        core.response.set_header("Content-Type", "application/problem+json")
        status = status or 503
        if status == 503 then core.response.set_header("Retry-After", "2") end
        local id = is_text(ctx.var.request_id, "^[%w-]+$") and ',"request_id":"' .. ctx.var.request_id .. '"' or ""
        return status, '{"type":"about:blank",' .. PROBLEMS[status] .. id .. "}"
    end
end

local function header_filter(conf, ctx)
    local ok, wrong = pcall(filter_response, conf, ctx)
    if ok then return end
    core.log.error("kube-coders-upstream: failed: " .. tostring(wrong))
    -- Rather no cookie at all than one that the gateway believes.
    for _, name in ipairs({ COOKIE, unpack(ORIGIN_HEADERS) }) do ngx.header[name] = nil end
    ngx.header["Cache-Control"] = "no-store"
end

return {
    version = 0.1, priority = 2598, name = "kube-coders-upstream", schema = schema,
    rewrite = guarded(rewrite), access = guarded(access), header_filter = header_filter,
    check_schema = function(conf) return core.schema.check(schema, conf) end,
}
