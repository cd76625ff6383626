-- SPDX-License-Identifier: Apache-2.0
-- What is around the plugin in a gateway, on a real nginx: APISIX's modules, as thin as they can be above nginx's
-- own, a login, and a call of the runner, which is made for us at the port `calls`.
local bit = require("bit")
local cjson = require("cjson.safe")
local ffi = require("ffi")

ffi.cdef("int inet_pton(int af, const char *src, void *dst);")

local AF_INET, AF_INET6 = 2, 10
local bytes = ffi.new("unsigned char[16]")

local core = { request = {}, response = {}, log = {}, schema = {}, utils = {}, json = { decode = cjson.decode } }

-- A client's first 100 header lines, and what plugins changed of them: the call is made from this table.
function core.request.headers(ctx)
    ctx.headers = ctx.headers or ngx.req.get_headers()
    return ctx.headers
end

function core.request.set_header(ctx, name, value)
    ngx.req.set_header(name, value)
    if ctx.headers then ctx.headers[name:lower()] = value end
end

function core.response.set_header(...)
    for i = 1, select("#", ...), 2 do ngx.header[select(i, ...)] = (select(i + 1, ...)) end
end

function core.log.error(...)
    ngx.log(ngx.ERR, ...)
end

function core.log.info(...)
    ngx.log(ngx.INFO, ...)
end

function core.schema.check(_, conf)
    return type(conf) == "table"
end

function core.utils.parse_ipv4(text)
    if ffi.C.inet_pton(AF_INET, text, bytes) ~= 1 then return false end
    return bit.bor(bit.lshift(bytes[0], 24), bit.lshift(bytes[1], 16), bit.lshift(bytes[2], 8), bytes[3])
end

function core.utils.parse_ipv6(text)
    return ffi.C.inet_pton(AF_INET6, text, bytes) == 1
end

local upstream = {}

function upstream.set(ctx, key, version, conf)
    ctx.upstream_key, ctx.upstream_version, ctx.upstream_conf = key, version, conf
end

-- The variables of a request, of nginx or of plugins.
local function variables()
    return setmetatable({}, {
        __index = function(_, name) return ngx.var[name] end,
        __newindex = function(var, name, value)
            if name == "upstream_scheme" or name == "upstream_host" then
                ngx.var[name] = value
            else
                rawset(var, name, value)
            end
        end,
    })
end

-- As openid-connect leaves a request: with the user who has logged in, and without a client's own header.
local function log_in(ctx)
    core.request.headers(ctx)
    -- A session that is renewed.
    if ngx.var.arg_renew then ngx.header["Set-Cookie"] = { "session=renewed", "session2=more" } end
    local user = ngx.var.cookie_user
    local userinfo = user and ngx.encode_base64(cjson.encode({ sub = user }))
    core.request.set_header(ctx, "X-Userinfo", userinfo)
end

-- As ext-plugin-pre-req does it, with allow_degradation: a call that fails is no reason to stop.
local function call(ctx, port)
    local headers = {}
    for name, value in pairs(core.request.headers(ctx)) do
        for _, one in ipairs(type(value) == "table" and value or { value }) do
            if #headers < 100 then headers[#headers + 1] = { name, one } end
        end
    end
    local socket = ngx.socket.tcp()
    if not socket:connect("127.0.0.1", port) then return end
    socket:send(cjson.encode({ target = ngx.var.request_uri, headers = headers }) .. "\n")
    local answer = cjson.decode(socket:receive("*l") or "")
    socket:close()
    if not answer then return end
    for _, name in ipairs(answer.remove or {}) do core.request.set_header(ctx, name, nil) end
    for name, value in pairs(answer.set or {}) do core.request.set_header(ctx, name, value) end
    return answer.status, answer.body
end

local function answer(status, body)
    ngx.status = status
    ngx.print(body)
    return ngx.exit(ngx.HTTP_OK)
end

local gateway = {}

function gateway.new(path, calls, own)
    package.loaded["apisix.core"], package.loaded["apisix.upstream"] = core, upstream
    package.loaded["resty.sha256"] = require("sha256")
    package.loaded["apisix.plugin"] = { skip_plugin = function(ctx, name) ctx["skips " .. name] = true end }
    local plugin = assert(loadfile(path))()
    local balancer = require("ngx.balancer")

    function gateway.rewrite()
        local ctx = {
            route_id = "workspaces", conf_type = "route", conf_id = "workspaces", conf_version = 1, var = variables(),
        }
        ngx.ctx.api_ctx = ctx
        log_in(ctx)
        ngx.ctx.conf = { remember = tonumber(ngx.var.arg_remember) or 0 }
        local status, body = plugin.rewrite(ngx.ctx.conf, ctx)
        if not status and not ctx["skips ext-plugin-pre-req"] then status, body = call(ctx, calls) end
        if status then return answer(status, body) end
    end

    function gateway.access()
        local status, body = plugin.access(ngx.ctx.conf, ngx.ctx.api_ctx)
        if status then return answer(status, body) end
        if ngx.ctx.api_ctx.upstream_conf.pass_host == "rewrite" then
            ngx.var.upstream_host = ngx.ctx.api_ctx.upstream_conf.upstream_host
        end
    end

    function gateway.header_filter()
        if ngx.ctx.api_ctx then plugin.header_filter(ngx.ctx.conf, ngx.ctx.api_ctx) end
    end

    function gateway.balance()
        local conf = ngx.ctx.api_ctx.upstream_conf
        local node = conf and conf.nodes[1] or { host = "127.0.0.1", port = own }
        assert(balancer.set_current_peer(node.host, node.port))
        if conf then assert(balancer.set_timeouts(conf.timeout.connect, conf.timeout.send, conf.timeout.read)) end
    end

    return gateway
end

return gateway
