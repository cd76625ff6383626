-- SPDX-License-Identifier: Apache-2.0
-- What the gateway is told of where a request goes.
local decision = require("decision")
local expect = require("expect")
local stand_in = require("stand_in")

local function sent(changes, asked)
    asked = asked or {}
    asked.runner = decision.runner(decision.of(changes))
    return stand_in.serve(stand_in.worker(), asked)
end

return function(case)
    case("http: the exact upstream", function()
        local outcome = sent()
        expect.same(outcome.key, "http://code-alice.ns.svc.cluster.local:8443")
        expect.same(outcome.version, "1700000000#10.0.0.1")
        expect.same(outcome.conf, {
            type = "roundrobin", scheme = "http", pass_host = "pass",
            nodes = { { host = "10.0.0.1", port = 8443, weight = 1, priority = 0 } },
            timeout = { connect = 6, send = 300, read = 300 },
        })
        expect.same(outcome.ctx.upstream_scheme, "http")
        expect.same(outcome.went_to, {
            host = "10.0.0.1", port = 8443, scheme = "http", upstream_host = "coders.example.com",
            is_routes_own = false,
        })
    end)

    case("https: the exact upstream, with the name for TLS", function()
        local outcome = sent({ scheme = "https", timeout = { connect = 0.5, send = 1.25, read = 2 } })
        expect.same(outcome.key, "https://code-alice.ns.svc.cluster.local:8443")
        expect.same(outcome.version, "1700000000#10.0.0.1")
        expect.same(outcome.conf, {
            type = "roundrobin", scheme = "https", pass_host = "rewrite",
            upstream_host = "code-alice.ns.svc.cluster.local",
            nodes = { { host = "10.0.0.1", port = 8443, weight = 1, priority = 0 } },
            timeout = { connect = 0.5, send = 1.25, read = 2 },
        })
        expect.same(outcome.ctx.upstream_scheme, "https")
        expect.same(outcome.went_to, {
            host = "10.0.0.1", port = 8443, scheme = "https", is_routes_own = false,
            upstream_host = "code-alice.ns.svc.cluster.local",
        })
    end)

    case("the decision's scheme wins over one that another plugin set", function()
        local outcome = sent({ scheme = "https" }, {
            between = function(ctx) ctx.upstream_scheme, ctx.var.upstream_scheme = "http", "http" end,
        })
        expect.same(outcome.went_to.scheme, "https")
        expect.same(outcome.ctx.upstream_scheme, "https")
    end)

    case("IPv6: addresses in brackets, for the balancer", function()
        local outcome = sent({ addresses = { "fd00::1" } })
        expect.same(stand_in.cjson.decode(outcome.nodes), {
            { host = "[fd00::1]", port = 8443, weight = 1, priority = 0 },
        })
        expect.same(outcome.version, "1700000000#fd00::1")
        expect.went_to(outcome, "[fd00::1]:8443")
    end)

    case("IPv6: a host in brackets, for Host", function()
        local outcome = sent({ scheme = "https", host = "fd00::2", addresses = { "fd00::2" } })
        expect.same(outcome.key, "https://[fd00::2]:8443")
        expect.same(outcome.went_to.upstream_host, "[fd00::2]")
    end)

    case("what is a host for the runner is one here, and nothing else", function()
        local file = assert(io.open("crates/runner/tests/vectors/hosts.json"))
        local cases = stand_in.cjson.decode(file:read("*a"))
        file:close()
        assert(#cases > 30, "too few cases")
        for _, it in ipairs(cases) do
            local outcome = stand_in.serve(stand_in.worker(), {
                runner = function(ctx, set_header)
                    set_header(ctx, "x-kube-coders-upstream", decision.text(decision.of({ host = it.host })))
                end,
            })
            assert((outcome.status == nil) == it.is_host, it.host)
        end
    end)

    case("two addresses are two nodes, in order", function()
        local outcome = sent({ addresses = { "10.0.0.2", "fd00::1" } })
        expect.same(outcome.version, "1700000000#10.0.0.2,fd00::1")
        expect.same(outcome.conf.nodes, {
            { host = "10.0.0.2", port = 8443, weight = 1, priority = 0 },
            { host = "[fd00::1]", port = 8443, weight = 1, priority = 0 },
        })
        expect.same(outcome.conf.retries, nil)
    end)

    case("the order of addresses, which a name server turns, makes no other picker", function()
        local one = sent({ addresses = { "10.0.0.1", "10.0.0.2" } })
        local other = sent({ addresses = { "10.0.0.2", "10.0.0.1" } })
        expect.same(one.version, other.version)
        expect.same(other.conf.nodes[1].host, "10.0.0.2")
    end)

    case("users, addresses and versions of a route never share what the balancer keeps", function()
        local seen = {}
        local function add(changes, asked)
            local outcome = sent(changes, asked)
            local pair = outcome.key .. " " .. outcome.version
            assert(not seen[pair], pair)
            seen[pair] = true
        end
        add()
        add({ host = "code-bob.ns.svc.cluster.local" })
        add({ host = "code-bob.ns.svc.cluster.local", scheme = "https" })
        add({ port = 8444 })
        add({ addresses = { "10.0.0.2" } })
        add({ addresses = { "10.0.0.1", "10.0.0.2" } })
        add({ addresses = { "10.0.0.2", "10.0.0.3" } })
        add(nil, { conf_version = 1700000001 })
        add(nil, { conf_version = "1700000000&1" })
    end)

    case("two users with two addresses each, in one worker, each get their own", function()
        local plugin = stand_in.worker()
        for _ = 1, 3 do
            for user, net in pairs({ alice = "10.1.0.", bob = "10.2.0." }) do
                local outcome = stand_in.serve(plugin, {
                    runner = decision.runner(decision.of({
                        host = "code-" .. user, addresses = { net .. "1", net .. "2" },
                    })),
                })
                expect.went_to(outcome, net .. "1:8443")
            end
        end
    end)

    case("a user whose addresses changed gets the new ones", function()
        local plugin = stand_in.worker()
        for _, net in ipairs({ "10.1.0.", "10.2.0." }) do
            local outcome = stand_in.serve(plugin, {
                runner = decision.runner(decision.of({ addresses = { net .. "1", net .. "2" } })),
            })
            expect.went_to(outcome, net .. "1:8443")
        end
    end)

    case("the browser's Host stays, or what the runner made of it", function()
        local runner = decision.runner(decision.of())
        local outcome = stand_in.serve(stand_in.worker(), {
            runner = function(ctx, set_header)
                runner(ctx, set_header)
                ctx.var.upstream_host = "other.example.com"
            end,
        })
        expect.same(outcome.went_to.upstream_host, "other.example.com")
    end)

    case("the plugin is what the gateway needs to load it", function()
        local plugin = stand_in.worker()
        expect.same(plugin.name, "kube-coders-upstream")
        expect.same(plugin.priority, 2598)
        expect.same(type(plugin.version), "number")
        expect.same(plugin.schema.properties._meta, nil)
        local conf = {}
        expect.same(plugin.check_schema(conf), true)
        expect.same(conf.remember, 0)
        expect.same(plugin.check_schema({ remember = 10 }), true)
        expect.same(plugin.check_schema({ remember = 0.5 }), true)
        for _, bad in ipairs({ { remember = 10.5 }, { remember = -1 }, { remember = "5" }, { more = 1 } }) do
            expect.same((plugin.check_schema(bad)), false)
        end
    end)
end
