-- SPDX-License-Identifier: Apache-2.0
-- Decisions as the runner writes them, and the runner that adds one to a request.
local cjson = require("cjson.safe")
local sha256 = require("sha256")

local decision = {}

-- Fields of a decision that let it be cached.
local CACHE_FIELDS = {}
for name in ("seconds headers presence navigation digest set remove cookies"):gmatch("%a+") do
    CACHE_FIELDS[name] = true
end

-- A good decision with some fields changed; `false` takes a field away.
function decision.of(changes)
    local fields = {
        v = 1, scheme = "http", host = "code-alice.ns.svc.cluster.local", port = 8443,
        addresses = { "10.0.0.1" }, timeout = { connect = 6, send = 300, read = 300 },
    }
    for name, value in pairs(changes or {}) do
        if not CACHE_FIELDS[name] then fields[name] = value or nil end
    end
    return fields
end

-- A decision that may be cached. Its digest is the one of the request that it decides.
function decision.cacheable(changes)
    local fields = decision.of(changes)
    fields.cache = {
        seconds = 10, headers = { "host", "x-userinfo" }, presence = {}, navigation = false,
        set = { ["x-forwarded-user"] = "alice" }, remove = { "x-access-token" }, cookies = { "session" },
    }
    for name, value in pairs(changes or {}) do
        if CACHE_FIELDS[name] then fields.cache[name] = value end
    end
    return fields
end

function decision.text(fields)
    if fields.cache and not fields.cache.digest then fields.cache.digest = ("0"):rep(64) end
    -- An empty list is written as an object here, which the runner never does.
    local text = assert(cjson.encode(fields))
    for _, name in ipairs({ "headers", "presence", "remove", "cookies", "addresses" }) do
        text = text:gsub('"' .. name .. '":{}', '"' .. name .. '":[]')
    end
    return text
end

local function is_navigation(headers)
    local accept = rawget(headers, "accept")
    accept = type(accept) == "table" and accept[1] or accept or ""
    return ngx.req.get_method() == "GET" and not rawget(headers, "upgrade") and accept:find("^text/html") ~= nil
end

-- The digest of the parts of a key, as the runner computes it (crates/runner/src/cache/digest.rs).
function decision.digest(key)
    local headers = ngx.req.get_headers(0)
    local text = ("1;%d;%d;"):format(#key.headers, #key.presence)
    text = text .. (not key.navigation and "any;" or is_navigation(headers) and "navigation;" or "other;")
    for _, name in ipairs(key.headers) do
        local values = rawget(headers, name)
        values = type(values) == "table" and values or { values }
        text = text .. #name .. ":" .. name .. #values .. ";"
        for _, value in ipairs(values) do text = text .. #value .. ":" .. value end
    end
    for _, name in ipairs(key.presence) do
        text = text .. #name .. ":" .. name .. (rawget(headers, name) and "+" or "-")
    end
    local digest = sha256:new()
    digest:update(text)
    return (digest:final():gsub(".", function(byte) return ("%02x"):format(byte:byte()) end))
end

-- A runner that answers with this decision, fields or text.
function decision.runner(it)
    return function(ctx, set_header)
        local text = it
        if type(it) == "table" then
            if it.cache and not it.cache.digest then
                local copy = cjson.decode(decision.text(it))
                copy.cache.digest, it.cache.digest = decision.digest(it.cache), nil
                text = decision.text(copy)
            else
                text = decision.text(it)
            end
        end
        set_header(ctx, "x-kube-coders-upstream", text)
    end
end

return decision
