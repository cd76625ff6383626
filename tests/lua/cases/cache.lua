-- SPDX-License-Identifier: Apache-2.0
-- The cache of decisions: which requests a cached decision serves without a call, and for how long.
local decision = require("decision")
local expect = require("expect")
local stand_in = require("stand_in")

local ALICE = { { "Host", "coders.example.com" }, { "X-Userinfo", "alice" } }
local BY = { "authorization", "host", "origin", "upgrade", "x-userinfo" }

-- Alice's headers, with some changed; `false` takes one away, and a list stands for several.
local function headers(changes)
    local found = {}
    for _, header in ipairs(ALICE) do
        if not changes or changes[header[1]] == nil then found[#found + 1] = header end
    end
    for name, value in pairs(changes or {}) do
        local values = type(value) == "table" and value or { value or nil }
        for _, text in ipairs(values) do found[#found + 1] = { name, text } end
    end
    return found
end

-- Serves a request for which the runner, if it is asked, decides this.
local function ask(plugin, asked, changes)
    asked = asked or {}
    asked.headers = asked.headers or headers()
    asked.remember = asked.remember or 10
    asked.runner = asked.runner or decision.runner(decision.cacheable({ headers = BY }))
    if changes then
        changes.headers = changes.headers or BY
        asked.runner = decision.runner(decision.cacheable(changes))
    end
    return stand_in.serve(plugin, asked)
end

-- A worker that has cached a decision for Alice.
local function knowing()
    local plugin = stand_in.worker()
    expect.same(ask(plugin).is_called, true, "whether the runner was called first")
    return plugin
end

local function expect_hit(outcome)
    if outcome.is_called then error("the runner was called", 2) end
    expect.same(outcome.ctx.var.kc_hit, "1")
    expect.went_to(outcome, "10.0.0.1:8443")
end

local function expect_call(outcome)
    if not outcome.is_called then error("a cached decision was used", 2) end
    expect.same(outcome.ctx.var.kc_hit, nil)
end

return function(case)
    case("no decision is cached by default", function()
        local plugin = stand_in.worker()
        for _ = 1, 3 do expect_call(ask(plugin, { remember = 0 })) end
        for _, cache in ipairs(stand_in.caches) do expect.same(cache.count, 0) end
    end)

    case("the first request is decided, an equal one is not", function()
        local plugin = knowing()
        local outcome = ask(plugin)
        expect_hit(outcome)
        expect.same(outcome.conf.scheme, "http")
        expect.same(outcome.key, "http://code-alice.ns.svc.cluster.local:8443")
        expect.same(outcome.ctx.kube_coders_upstream, nil, "what a long tunnel would hold")
    end)

    case("a decision without the permission to cache it is not cached", function()
        local plugin = stand_in.worker()
        local runner = decision.runner(decision.of())
        for _ = 1, 3 do expect_call(ask(plugin, { runner = runner })) end
    end)

    case("a decision that depended on no header is not cached", function()
        local plugin = stand_in.worker()
        for _ = 1, 3 do expect_call(ask(plugin, nil, { headers = {} })) end
    end)

    case("a decision about a user from a login after this plugin is not cached", function()
        local plugin = stand_in.worker()
        for number, user in ipairs({ "alice", "bob", "alice" }) do
            local decided = decision.cacheable({
                headers = { "host", "x-userinfo" }, remove = { "x-access-token", "x-userinfo" },
                host = "code-" .. user, addresses = { "10.0.0." .. number },
            })
            local outcome = stand_in.serve(plugin, {
                headers = { { "Host", "coders.example.com" } }, remember = 10,
                runner = function(ctx, set)
                    set(ctx, "X-Userinfo", user)
                    decision.runner(decided)(ctx, set)
                end,
            })
            expect_call(outcome)
            expect.went_to(outcome, "10.0.0." .. number .. ":8443")
        end
    end)

    case("a login after this plugin, which finds another user, gets no cached decision", function()
        local plugin = stand_in.worker()
        local decided = { headers = { "host", "x-userinfo" }, remove = { "x-userinfo" } }
        expect_call(ask(plugin, nil, decided))
        expect_hit(ask(plugin, nil, decided))
        -- Mallory sends Alice's value, and is logged in after this plugin.
        local outcome = ask(plugin, { between = function(ctx, set) set(ctx, "X-Userinfo", "mallory") end }, decided)
        expect.refused(outcome, "a header that was removed is there again: x-userinfo", { "mallory", "alice" })
    end)

    case("a plugin between this one and the access phase sees the changes of a hit", function()
        local plugin = knowing()
        local seen
        local outcome = ask(plugin, {
            headers = headers({ ["X-Forwarded-User"] = { "mallory", "root" }, Cookie = "session=x; a=1" }),
            between = function() seen = ngx.req.get_headers(0) end,
        })
        expect_hit(outcome)
        expect.same(rawget(seen, "x-forwarded-user"), "alice")
        expect.same(rawget(seen, "cookie"), "a=1")
    end)

    case("a request with a consumer is served by no cached decision", function()
        local plugin = knowing()
        expect_call(ask(plugin, { ctx = { consumer = { username = "c" } } }))
    end)

    case("an older gateway, which can't skip the call, caches nothing", function()
        local plugin = stand_in.worker()
        package.loaded["apisix.plugin"].skip_plugin = nil
        for _ = 1, 3 do expect_call(ask(plugin)) end
        expect.same(stand_in.caches[1].count, 0)
    end)

    case("a long row of spaces in Accept takes no time", function()
        local plugin = stand_in.worker()
        local accept = "*/*;q=0" .. (" "):rep(200000) .. "x"
        local start = os.clock()
        for _ = 1, 2 do ask(plugin, { headers = headers({ Accept = accept }) }, { navigation = true }) end
        local took = os.clock() - start
        assert(took < 2, took .. " s, and quadratic it would be minutes")
    end)

    case("what a hit changes is the later request's own", function()
        local plugin = knowing()
        local outcome = ask(plugin, { headers = headers({
            Cookie = { "b=2; session=mine", "session_2=mine; c=3" }, ["X-Access-Token"] = { "t1", "t2" },
            ["X-Forwarded-User"] = { "mallory", "root" }, Accept = "text/html",
        }) })
        expect_hit(outcome)
        expect.same(rawget(outcome.headers, "cookie"), "b=2; c=3")
        expect.same(rawget(outcome.headers, "x-access-token"), nil)
        expect.same(rawget(outcome.headers, "x-forwarded-user"), "alice")
        expect.same(rawget(outcome.headers, "accept"), "text/html")
        expect.same(rawget(outcome.headers, "x-userinfo"), "alice")
    end)

    case("a Host that the runner set is set again", function()
        local plugin = stand_in.worker()
        local changes = { headers = BY, set = { host = "other.example.com" } }
        ask(plugin, nil, changes)
        local outcome = ask(plugin, nil, changes)
        expect_hit(outcome)
        expect.same(outcome.went_to.upstream_host, "other.example.com")
        expect.same(rawget(outcome.headers, "host"), "other.example.com")
    end)

    case("a call that was made counts more than a cached decision", function()
        local plugin = knowing()
        -- Without the filter on ext-plugin-pre-req the runner is still asked.
        local outcome = ask(plugin, { between = decision.runner(decision.of({ addresses = { "10.0.0.9" } })) })
        expect.went_to(outcome, "10.0.0.9:8443")
    end)

    case("a malformed decision is refused even if a good one is cached", function()
        expect.refused(ask(knowing(), { between = decision.runner("{}") }), "malformed")
    end)

    case("a client's header makes no hit and no harm", function()
        local plugin = knowing()
        local spoofed = decision.text(decision.cacheable({ addresses = { "10.6.6.6" } }))
        expect_hit(ask(plugin, { headers = headers({ ["X-Kube-Coders-Upstream"] = { spoofed, spoofed } }) }))
        expect_hit(ask(plugin, { headers = headers({ X_Kube_Coders_Upstream = spoofed }) }))
        local outcome = ask(stand_in.worker(), { headers = headers({ ["X-Kube-Coders-Upstream"] = spoofed }) })
        expect.went_to(outcome, "10.0.0.1:8443")
    end)

    for _, times in ipairs({ { 10, 10, 10 }, { 10, 3, 3 }, { 3, 10, 3 }, { 0.5, 10, 0.5 }, { 10, 0.25, 0.25 } }) do
        case(("conf %g s, decision %g s: good for %g s"):format(unpack(times)), function()
            local plugin = stand_in.worker()
            local changes = { headers = BY, seconds = times[2] }
            expect_call(ask(plugin, { remember = times[1] }, changes))
            stand_in.clock = 1000 + times[3] - 0.01
            expect_hit(ask(plugin, { remember = times[1] }, changes))
            stand_in.clock = 1000 + times[3]
            -- A hit does not make it last longer.
            expect_call(ask(plugin, { remember = times[1] }, changes))
        end)
    end

    case("the time counts from before the call", function()
        local plugin = stand_in.worker()
        ask(plugin, { between = function() stand_in.clock = stand_in.clock + 4 end })
        stand_in.clock = 1009.9
        expect_hit(ask(plugin))
        stand_in.clock = 1010
        expect_call(ask(plugin))
    end)

    case("a clock that was set back ends it", function()
        local plugin = knowing()
        stand_in.clock = 999
        expect_call(ask(plugin))
    end)

    local CHANGES = {
        { "another user", { headers = headers({ ["X-Userinfo"] = "bob" }) } },
        { "no user", { headers = headers({ ["X-Userinfo"] = false }) } },
        { "an empty user", { headers = headers({ ["X-Userinfo"] = "" }) } },
        { "a user twice", { headers = headers({ ["X-Userinfo"] = { "alice", "alice" } }) } },
        { "another user behind", { headers = headers({ ["X-Userinfo"] = { "alice", "bob" } }) } },
        { "another user first", { headers = headers({ ["X-Userinfo"] = { "bob", "alice" } }) } },
        { "a user in an underscore twin", { headers = headers({ ["X-Userinfo"] = false, X_Userinfo = "alice" }) } },
        { "a twin of the user's header", { headers = headers({ X_Userinfo = "alice" }) } },
        { "a twin of another header", { headers = headers({ X_Other = "1" }) } },
        { "a token", { headers = headers({ Authorization = "Bearer t" }) } },
        { "an empty token", { headers = headers({ Authorization = "" }) } },
        { "an upgrade", { headers = headers({ Upgrade = "websocket" }) } },
        { "an origin", { headers = headers({ Origin = "https://coders.example.com" }) } },
        { "another host", { headers = headers({ Host = "other.example.com" }) } },
        { "no host", { headers = headers({ Host = false }) } },
        { "another scheme", { scheme = "http" } },
        { "a reloaded route", { conf_version = 1700000001 } },
        { "another route", { route_id = "other" } },
        { "another route's id", { ctx = { route_id = "other" } } },
        { "another conf's id", { ctx = { conf_id = "other" } } },
        { "a route with a service", { ctx = { conf_type = "route&service" } } },
        { "another Host for the upstream", { before = function(ctx) ctx.var.upstream_host = "x" end } },
        { "another user by openid-connect", { before = function(ctx, set_header)
            set_header(ctx, "X-Userinfo", "bob")
        end } },
        { "100 headers", { headers = (function()
            local many = headers()
            while #many < 100 do many[#many + 1] = { "X-Filler", "1" } end
            return many
        end)() } },
    }
    for _, change in ipairs(CHANGES) do
        case("no hit for " .. change[1], function()
            local plugin = knowing()
            local asked = {}
            for name, value in pairs(change[2]) do asked[name] = value end
            expect_call(ask(plugin, asked, { addresses = { "10.0.0.2" } }))
            expect.same(asked.headers ~= nil or change[2].headers == nil, true)
            -- It did not change the first request's cached decision.
            expect_hit(ask(plugin))
        end)
    end

    case("a hit in spite of what it did not depend on", function()
        local plugin = knowing()
        local many = headers({ Accept = "x", Cookie = "session=1", ["User-Agent"] = "y" })
        while #many < 99 do many[#many + 1] = { "X-Filler", "1" } end
        expect_hit(ask(plugin, { headers = many }))
        local other = {}
        for i, header in ipairs(headers()) do other[#ALICE + 1 - i] = { header[1]:upper(), header[2] } end
        expect_hit(ask(plugin, { headers = other, request_id = "ff" }))
    end)

    case("values are those from before the runner's changes", function()
        local plugin = stand_in.worker()
        local lasting = decision.runner(decision.cacheable({ headers = BY }))
        local function runner(ctx, set_header)
            lasting(ctx, set_header)
            set_header(ctx, "x-userinfo", nil)
            set_header(ctx, "authorization", nil)
            set_header(ctx, "origin", "changed")
        end
        expect_call(ask(plugin, { runner = runner }))
        expect_hit(ask(plugin, { runner = runner }))
        -- The request as the runner left it is another one.
        expect_call(ask(plugin, { headers = { ALICE[1], { "Origin", "changed" } }, runner = runner }))
        expect_call(ask(plugin, { headers = headers({ ["X-Userinfo"] = "bob" }), runner = runner }))
    end)

    case("values are those that openid-connect wrote", function()
        local plugin = stand_in.worker()
        local function as(user)
            return function(ctx, set_header) set_header(ctx, "X-Userinfo", user) end
        end
        ask(plugin, { before = as("alice") })
        expect_hit(ask(plugin, { before = as("alice"), headers = headers({ ["X-Userinfo"] = { "bob", "eve" } }) }))
        expect_call(ask(plugin, { before = as("bob") }))
    end)

    case("another list of headers is learned, and what was stored by the old one is out of reach", function()
        local plugin = knowing()
        local wider = { headers = { "x-other", "x-userinfo" } }
        local asked = { headers = headers({ ["X-Userinfo"] = "bob" }) }
        expect_call(ask(plugin, asked, wider))
        expect_call(ask(plugin, nil, wider))
        expect_hit(ask(plugin, nil, wider))
        expect_call(ask(plugin, { headers = headers({ ["X-Other"] = "1" }) }, wider))
    end)

    case("each route has a list of its own", function()
        local plugin = knowing()
        ask(plugin, { route_id = "other" }, { headers = { "x-other" } })
        expect_hit(ask(plugin))
        expect_hit(ask(plugin, { route_id = "other", headers = headers({ ["X-Userinfo"] = "bob" }) }))
    end)

    case("a request with a consumer is not stored", function()
        local plugin = stand_in.worker()
        for _ = 1, 2 do
            expect_call(ask(plugin, { between = function(ctx) ctx.consumer = { username = "c" } end }))
        end
    end)

    case("no worker knows what another knows", function()
        knowing()
        expect_call(ask(stand_in.worker()))
    end)

    case("a cached decision survives requests that change their nodes", function()
        local plugin = stand_in.worker()
        local changes = { headers = BY, scheme = "https", host = "fd00::9", addresses = { "fd00::1", "10.0.0.2" } }
        local first = ask(plugin, nil, changes)
        local conf = stand_in.cjson.decode(stand_in.cjson.encode(first.conf))
        for i = 1, 4 do
            local outcome = i == 1 and first or ask(plugin, nil, changes)
            expect.same(outcome.is_called, i == 1)
            expect.same(outcome.conf, conf)
            for _, node in ipairs(outcome.conf.nodes) do node.host, node.port = "10.6.6.6", 1 end
            outcome.conf.timeout.read, outcome.conf.upstream_host, outcome.conf.nodes[3] = 0, "mallory", {}
            -- What the balancer keeps is its own affair.
            stand_in.pickers = {}
        end
    end)

    case("the cache is bounded, and the latest decisions stay", function()
        local plugin = stand_in.worker()
        for i = 1, 2500 do
            ask(plugin, { headers = headers({ ["X-Userinfo"] = "user-" .. i }) })
        end
        for i = 1, 500 do
            ask(plugin, { route_id = "route-" .. i })
        end
        local sizes = {}
        for i, cache in ipairs(stand_in.caches) do
            local count = 0
            for _ in pairs(cache.entries) do count = count + 1 end
            sizes[i] = count
        end
        expect.same(sizes, { 2000, 200 })
        expect_hit(ask(plugin, { route_id = "route-500" }))
        expect_call(ask(plugin, { route_id = "route-1" }))
    end)

    case("keys hold no value of a header but the host that goes upstream", function()
        local plugin = stand_in.worker()
        ask(plugin, { headers = headers({ Authorization = "Bearer secret" }) })
        expect.same(stand_in.caches[1].count, 1)
        for key in pairs(stand_in.caches[1].entries) do
            expect.same(key:find("secret", 1, true), nil)
            expect.same(key:find("alice", 1, true), nil)
        end
    end)

    case("a request with a very long host is not cached", function()
        local plugin = stand_in.worker()
        for _ = 1, 2 do expect_call(ask(plugin, { headers = headers({ Host = ("a"):rep(1000) }) })) end
        expect.same(stand_in.caches[1].count, 0)
    end)

    local DIFFERENT = {
        digest = { digest = ("0"):rep(64) }, navigation = { navigation = true, digest = ("f"):rep(64) },
    }
    for what, changes in pairs(DIFFERENT) do
        case("a decision whose parts the runner saw otherwise is not cached: " .. what, function()
            local plugin = stand_in.worker()
            for _ = 1, 3 do expect_call(ask(plugin, nil, changes)) end
            expect.same(stand_in.caches[1].count, 0)
        end)
    end

    case("a header that another plugin changes before the call is not cached", function()
        local plugin = stand_in.worker()
        for _ = 1, 3 do
            expect_call(ask(plugin, { runner = function(ctx, set)
                set(ctx, "Origin", "changed")
                decision.runner(decision.cacheable({ headers = BY }))(ctx, set)
            end }))
        end
    end)

    case("presence tells requests apart, and not values", function()
        local plugin = stand_in.worker()
        local function asked(value)
            return ask(plugin, { headers = headers({ ["X-Debug"] = value }) }, { presence = { "x-debug" } })
        end
        expect_call(asked(nil))
        expect_call(asked("1"))
        expect_hit(asked("2"))
        expect_hit(asked(""))
        expect_hit(asked({ "1", "2" }))
        expect_hit(asked(nil))
    end)

    case("navigations are told from other requests, and not by the rest of Accept", function()
        local plugin = stand_in.worker()
        local function asked(accept, method)
            return ask(plugin, { headers = headers({ Accept = accept }), method = method }, { navigation = true })
        end
        expect_call(asked("text/html"))
        expect_hit(asked("text/html,application/xhtml+xml;q=0.9"))
        expect_call(asked("*/*"))
        expect_hit(asked("image/png"))
        expect_hit(asked(nil))
        expect_hit(asked("text/html", "POST"))
        expect_hit(asked("text/html"))
    end)
end
