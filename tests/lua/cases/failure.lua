-- SPDX-License-Identifier: Apache-2.0
-- Whatever breaks within the plugin, no request goes to the route's own upstream.
local decision = require("decision")
local expect = require("expect")
local stand_in = require("stand_in")

local HEADERS = { { "Host", "a" }, { "X-Userinfo", "alice" }, { "X-Kube-Coders-Upstream", "x" } }

-- What is broken, how, and what is logged if nothing throws.
local BROKEN = {
    { "cjson is missing", function(core) core.json = nil end },
    { "cjson throws", function(core) core.json.decode = function() error("broken") end end },
    { "the address parser is missing", function(core) core.utils = nil end },
    { "no header can be set", function(core)
        core.request = setmetatable({ set_header = function() error("broken") end }, { __index = core.request })
    end },
    { "headers can't be dropped", function(core)
        core.request = setmetatable({ set_header = function() end }, { __index = core.request })
    end, "can't be dropped" },
    { "headers can't be read", function() stand_in.ngx.req.get_headers = function() error("broken") end end },
    { "headers are nil", function()
        stand_in.ngx.req.get_headers = function() return nil end
    end, "can't be dropped" },
    { "there is no clock", function() stand_in.ngx.now = nil end },
    { "the digest can't be made", function() package.loaded["resty.sha256"].new = function() return nil end end },
    { "the digest takes nothing", function()
        package.loaded["resty.sha256"].update = function() return false end
    end },
    { "the digest has no end", function() package.loaded["resty.sha256"].final = function() return nil end end },
    { "the cache throws", function()
        for _, cache in ipairs(stand_in.caches) do
            cache.get, cache.set = function() error("broken") end, function() error("broken") end
        end
    end },
    { "the upstream can't be set", function()
        package.loaded["apisix.upstream"].set = function() error("broken") end
    end },
}

local function copy(of)
    local copied = {}
    for name, value in pairs(of) do copied[name] = value end
    return copied
end

return function(case)
    for _, broken in ipairs(BROKEN) do
        case("closed if " .. broken[1], function()
            local plugin = stand_in.worker()
            local core, sha256 = stand_in.core, package.loaded["resty.sha256"]
            local upstream = package.loaded["apisix.upstream"]
            local kept = { copy(core), copy(sha256), copy(upstream) }
            broken[2](core)
            local ok, outcome = pcall(stand_in.serve, plugin, {
                headers = HEADERS, remember = 10,
                runner = function()
                    ngx.req.set_header("x-kube-coders-upstream", decision.text(decision.cacheable()))
                end,
            })
            for name, value in pairs(kept[1]) do core[name] = value end
            for name, value in pairs(kept[2]) do sha256[name] = value end
            for name, value in pairs(kept[3]) do upstream[name] = value end
            assert(ok, outcome)
            expect.refused(outcome, broken[3] or "kube-coders-upstream: failed: ", { "code-alice", "10.0.0.1" })
        end)
    end

    case("an id that is no id does not get into the answer", function()
        for _, id in ipairs({ 'a"b', "", "a b", "\n" }) do
            local outcome = stand_in.serve(stand_in.worker(), { request_id = id })
            expect.same(outcome.status, 503)
            expect.same(stand_in.cjson.decode(outcome.body).request_id, nil)
        end
    end)

    case("an answer has no more to say if there is no id", function()
        local outcome = stand_in.serve(stand_in.worker(), { request_id = false, before = function(ctx)
            ctx.var.request_id = nil
        end })
        expect.same(outcome.status, 503)
        expect.same(outcome.response_headers["Retry-After"], "2")
    end)
end
