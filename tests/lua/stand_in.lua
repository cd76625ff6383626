-- SPDX-License-Identifier: Apache-2.0
-- The parts of the gateway that the plugin touches, as APISIX 3.18 behaves, without a gateway: one worker
-- at a time, one request at a time, and a clock that stands still unless a test moves it.
local bit = require("bit")
local cjson = require("cjson.safe")
local ffi = require("ffi")
local sha256 = require("sha256")

ffi.cdef("int inet_pton(int af, const char *src, void *dst);")

local PLUGIN = "apisix-conf/plugins/kube-coders-upstream.lua"

local stand_in = { clock = 1000, log = {}, cjson = cjson }

-- The request that is being served: `headers` is a list of { name, value } as they came.
local request

-- Names that nginx has a variable of its own for, which an underscore does not stand in for.
local BUILT_IN = { host = true, user_agent = true, referer = true, via = true, x_forwarded_for = true, cookie = true }

local function folded(name)
    return (name:lower():gsub("-", "_"))
end

local function header_variable(name)
    local values = {}
    for _, header in ipairs(request.headers) do
        local seen = folded(header[1])
        if BUILT_IN[name] and header[1]:find("_", 1, true) then seen = "" end
        if seen == name then values[#values + 1] = header[2] end
    end
    return values[1] and table.concat(values, name == "cookie" and "; " or ", ")
end

local variables = setmetatable({}, {
    __index = function(_, name)
        assert(type(name) == "string", "bad variable name")
        local header = name:match("^http_(.*)$")
        if header then return header_variable(header) end
        return request.variables[name]
    end,
    __newindex = function(_, name, value)
        assert(name:find("^upstream_"), "variable not found for writing")
        request.variables[name] = value == nil and "" or tostring(value)
    end,
})

local headers_mt = {
    __index = function(headers, name)
        return rawget(headers, (name:lower():gsub("_", "-")))
    end,
}

local function get_headers(most, is_raw)
    most = most or 100
    local headers = {}
    for i, header in ipairs(request.headers) do
        if most > 0 and i > most then break end
        local name, value = is_raw and header[1] or header[1]:lower(), header[2]
        local before = headers[name]
        if type(before) == "table" then
            before[#before + 1] = value
        else
            headers[name] = before and { before, value } or value
        end
    end
    return is_raw and headers or setmetatable(headers, headers_mt)
end

local function set_header(name, value)
    assert(type(name) == "string")
    request.is_changed = true
    local values = type(value) == "table" and value or { value }
    -- An empty value removes, as none does.
    if values[1] == "" then values = {} end
    local kept, at = {}, nil
    for _, header in ipairs(request.headers) do
        if header[1]:lower() ~= name:lower() then
            kept[#kept + 1] = header
        else
            at = at or #kept + 1
        end
    end
    for i, text in ipairs(values) do table.insert(kept, (at or #kept + 1) + (at and i - 1 or 0), { name, text }) end
    request.headers = kept
end

local core = { request = {}, response = {}, log = {}, schema = {}, utils = {} }

-- The table of a request's headers, which the gateway keeps: 100 of them.
function core.request.headers(ctx)
    if request.is_changed then
        request.is_changed = false
        ctx.headers = get_headers()
    end
    ctx.headers = ctx.headers or get_headers()
    return ctx.headers
end

function core.request.header(ctx, name)
    local value = core.request.headers(ctx)[name]
    return type(value) == "table" and value[1] or value
end

function core.request.set_header(ctx, name, value)
    assert(type(ctx) == "table" and type(name) == "string", "invalid header name")
    local was_changed = request.is_changed
    set_header(name, value)
    ctx.var["http_" .. folded(name)] = nil
    if not was_changed then
        request.is_changed = false
        if ctx.headers then ctx.headers[name:lower()] = value end
    end
end

function core.response.set_header(...)
    for i = 1, select("#", ...), 2 do
        request.response_headers[select(i, ...)] = (select(i + 1, ...))
    end
end

for _, level in ipairs({ "error", "warn", "info" }) do
    core.log[level] = function(...)
        local texts = {}
        for i = 1, select("#", ...) do texts[i] = tostring((select(i, ...))) end
        table.insert(stand_in.log, { level = level, text = table.concat(texts) })
    end
end

-- As much of JSON Schema as the plugin uses.
function core.schema.check(schema, conf)
    for name, value in pairs(conf) do
        local rule = schema.properties[name]
        if not rule and schema.additionalProperties == false and name ~= "_meta" then
            return false, "additional properties forbidden, found " .. name
        elseif rule and type(value) ~= rule.type then
            return false, "wrong type: " .. name
        elseif rule and (value < rule.minimum or value > rule.maximum) then
            return false, "out of range: " .. name
        end
    end
    for name, rule in pairs(schema.properties) do
        if conf[name] == nil then conf[name] = rule.default end
    end
    return true
end

local AF_INET, AF_INET6 = 2, 10
local bytes = ffi.new("unsigned char[16]")

function core.utils.parse_ipv4(text)
    if not text or ffi.C.inet_pton(AF_INET, text, bytes) ~= 1 then return false end
    return bit.bor(bit.lshift(bytes[0], 24), bit.lshift(bytes[1], 16), bit.lshift(bytes[2], 8), bytes[3])
end

function core.utils.parse_ipv6(text)
    text = text and (text:match("^%[(.*)%]$") or text)
    return text and ffi.C.inet_pton(AF_INET6, text, bytes) == 1 and { 0, 0, 0, 0 } or false
end

-- The headers of the response, by their names in lower case.
local response_header = setmetatable({}, {
    __index = function(_, name)
        local value = request.response[name:lower()]
        return type(value) == "table" and { unpack(value) } or value
    end,
    __newindex = function(_, name, value)
        if type(value) == "table" and #value < 2 then value = value[1] end
        request.response[name:lower()] = value
    end,
})

local upstream = {}

function upstream.set(ctx, key, version, conf)
    assert(ctx and key and version and conf, "missing argument")
    ctx.upstream_conf, ctx.upstream_version, ctx.upstream_key = conf, version, key
end

-- What a variable of the gateway's was read as stays, until it is set.
local context_mt = {
    __index = function(var, name)
        local kept = var._cache[name]
        if kept ~= nil then return kept end
        kept = variables[name]
        var._cache[name] = kept
        return kept
    end,
    __newindex = function(var, name, value)
        if name == "upstream_scheme" or name == "upstream_host" then variables[name] = value end
        var._cache[name] = value
    end,
}

local lrucache = {}
lrucache.__index = lrucache

function lrucache.new(size)
    local cache = setmetatable({ size = size, entries = {}, count = 0, ticks = 0 }, lrucache)
    table.insert(stand_in.caches, cache)
    return cache
end

function lrucache:get(key)
    local entry = self.entries[key]
    if not entry then return nil end
    self.ticks = self.ticks + 1
    entry.tick = self.ticks
    return entry.value
end

function lrucache:set(key, value)
    assert(key ~= nil, "no key")
    self.ticks = self.ticks + 1
    if not self.entries[key] then
        if self.count == self.size then
            local oldest
            for other, entry in pairs(self.entries) do
                if not oldest or entry.tick < self.entries[oldest].tick then oldest = other end
            end
            self.entries[oldest] = nil
            self.count = self.count - 1
        end
        self.count = self.count + 1
    end
    self.entries[key] = { value = value, tick = self.ticks }
end

-- A worker that has just started: the plugin with an empty cache, and no server picked.
function stand_in.worker()
    stand_in.clock, stand_in.log, stand_in.caches, stand_in.pickers = 1000, {}, {}, {}
    -- Each worker has its own, which a test may break.
    core.json = { decode = cjson.decode, encode = cjson.encode }
    stand_in.core = core
    package.loaded["apisix.core"] = core
    package.loaded["apisix.upstream"] = upstream
    package.loaded["apisix.plugin"] = {
        skip_plugin = function(ctx, name)
            ctx.skipped = ctx.skipped or {}
            ctx.skipped[name] = true
        end,
    }
    package.loaded["resty.sha256"] = sha256
    package.loaded["resty.lrucache"] = lrucache
    stand_in.ngx = {
        header = response_header,
        var = variables,
        req = {
            get_headers = get_headers, set_header = set_header,
            get_method = function() return request.method end,
        },
        now = function() return stand_in.clock end,
    }
    _G.ngx = stand_in.ngx
    return assert(loadfile(PLUGIN))()
end

-- Adds a header line without the gateway's knowledge, as nginx does for a new body.
function stand_in.add_line(name, value) request.headers[#request.headers + 1] = { name, value } end

-- What the balancer does with the upstream that was chosen, or else with the route's own.
local function pick(ctx)
    local conf = ctx.upstream_conf or ctx.route_upstream
    ctx.upstream_scheme = ctx.upstream_scheme or conf.scheme
    local nodes = conf.nodes
    for _, node in ipairs(nodes) do
        if core.utils.parse_ipv6(node.host) and node.host:sub(1, 1) ~= "[" then node.host = "[" .. node.host .. "]" end
    end
    if #nodes > 1 then
        local kept = stand_in.pickers[ctx.upstream_key]
        if not kept or kept.version ~= ctx.upstream_version then
            kept = { version = ctx.upstream_version, nodes = nodes }
            stand_in.pickers[ctx.upstream_key] = kept
        end
        nodes = kept.nodes
    end
    if conf.pass_host == "rewrite" then ctx.var.upstream_host = conf.upstream_host end
    return {
        host = nodes[1].host, port = nodes[1].port, scheme = variables.upstream_scheme,
        upstream_host = variables.upstream_host, is_routes_own = conf == ctx.route_upstream,
    }
end

-- Serves a request as the gateway does: the rewrite phase of whatever is before the plugin (`before`), of
-- the plugin, and of ext-plugin-pre-req (`runner`, unless the plugin skips it), then the access phase.
-- Gives what became of it: the status of an answer of the gateway's, or where the request went.
function stand_in.serve(plugin, asked)
    request = {
        headers = {}, response_headers = {}, response = {}, is_changed = false, method = asked.method or "GET",
        variables = { scheme = asked.scheme or "https", request_id = asked.request_id or "0123456789abcdef",
                      upstream_scheme = "http", request_uri = asked.target or "/" },
    }
    for _, header in ipairs(asked.headers or { { "Host", "coders.example.com" } }) do
        request.headers[#request.headers + 1] = { header[1], header[2] }
    end
    request.variables.upstream_host = header_variable("host") or ""
    local ctx = {
        route_id = asked.route_id or "workspaces", conf_type = "route", conf_id = asked.route_id or "workspaces",
        conf_version = asked.conf_version or 1700000000,
        var = setmetatable({ _cache = {} }, context_mt),
        route_upstream = { type = "roundrobin", scheme = "http", pass_host = "pass",
                           nodes = { { host = "127.0.0.1", port = 1, weight = 1, priority = 0 } } },
    }
    for name, value in pairs(asked.ctx or {}) do ctx[name] = value end
    local conf = { remember = asked.remember }
    assert(plugin.check_schema(conf))
    local outcome = { is_called = false, log_from = #stand_in.log + 1, ctx = ctx }
    if asked.before then asked.before(ctx, core.request.set_header) end

    local status, body
    if not asked.skips_rewrite then status, body = plugin.rewrite(conf, ctx) end
    if not status and not (ctx.skipped and ctx.skipped["ext-plugin-pre-req"]) then
        outcome.is_called = true
        if asked.runner then asked.runner(ctx, core.request.set_header) end
    end
    if not status and asked.between then asked.between(ctx, core.request.set_header) end
    if not status then status, body = plugin.access(conf, ctx) end
    outcome.status, outcome.body, outcome.response_headers = status, body, request.response_headers
    outcome.key, outcome.version, outcome.conf = ctx.upstream_key, ctx.upstream_version, ctx.upstream_conf
    if not status then
        -- As it is before the balancer puts brackets into it.
        outcome.nodes = cjson.encode(ctx.upstream_conf and ctx.upstream_conf.nodes)
        outcome.went_to = pick(ctx)
    end
    if not status then
        -- The upstream's headers come in addition to those that the gateway has set.
        for _, header in ipairs(asked.response or {}) do
            local name, before = header[1]:lower(), request.response[header[1]:lower()]
            if type(before) == "table" then
                table.insert(before, header[2])
            else
                request.response[name] = before and { before, header[2] } or header[2]
            end
        end
        if asked.spoil_response then ctx.kube_coders_answer.own = nil end
        stand_in.ngx.status = asked.response_status or 200
        plugin.header_filter(conf, ctx)
        outcome.response = request.response
    end
    outcome.headers = get_headers(0)
    outcome.kept_headers = core.request.headers(ctx)
    return outcome
end

return stand_in
