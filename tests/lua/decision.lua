-- SPDX-License-Identifier: Apache-2.0
-- Decisions as the runner writes them, and the runner that adds one to a request.
local cjson = require("cjson.safe")

local decision = {}

-- A good decision with some fields changed; `false` takes a field away.
function decision.of(changes)
    local fields = {
        v = 1, scheme = "http", host = "code-alice.ns.svc.cluster.local", port = 8443,
        addresses = { "10.0.0.1" }, timeout = { connect = 6, send = 300, read = 300 },
    }
    for name, value in pairs(changes or {}) do fields[name] = value or nil end
    return fields
end

-- The same with all that lets it be remembered.
function decision.lasting(changes)
    local fields = decision.of({
        remember = 10, by = { "host", "x-userinfo" }, set = { ["x-forwarded-user"] = "alice" },
        remove = { "x-access-token" }, cookies = { "session" },
    })
    for name, value in pairs(changes or {}) do fields[name] = value or nil end
    return fields
end

function decision.text(fields)
    -- An empty list is written as an object here, which the runner never does.
    local text = assert(cjson.encode(fields))
    for _, name in ipairs({ "by", "remove", "cookies", "addresses" }) do
        text = text:gsub('"' .. name .. '":{}', '"' .. name .. '":[]')
    end
    return text
end

-- A runner that answers with this decision, fields or text.
function decision.runner(it)
    local text = type(it) == "table" and decision.text(it) or it
    return function(ctx, set_header) set_header(ctx, "x-kube-coders-upstream", text) end
end

return decision
