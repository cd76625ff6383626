-- SPDX-License-Identifier: Apache-2.0
-- Whose decision counts: only the one that the runner adds, and only one.
local decision = require("decision")
local expect = require("expect")
local stand_in = require("stand_in")

local HEADER = "x-kube-coders-upstream"
local SPOOFED = decision.text(decision.of({ host = "code-mallory", addresses = { "10.6.6.6" } }))

local function with(...)
    local headers = { { "Host", "coders.example.com" } }
    for _, name in ipairs({ ... }) do headers[#headers + 1] = { name, SPOOFED } end
    return headers
end

local MANY = {}
for i = 1, 150 do MANY[i] = HEADER end

-- Every way to write the name with an underscore for a hyphen.
local TWINS = {}
for i = 0, 7 do
    local name = { "x", "kube", "coders", "upstream" }
    TWINS[#TWINS + 1] = name[1] .. (i % 2 < 1 and "-" or "_") .. name[2] .. (i % 4 < 2 and "-" or "_")
        .. name[3] .. (i < 4 and "-" or "_") .. name[4]
end

local SPOOFS = {
    { "once", with(HEADER) },
    { "twice", with(HEADER, HEADER) },
    { "150 times", with(unpack(MANY)) },
    { "in other letters", with("X-Kube-Coders-Upstream", "X-KUBE-CODERS-UPSTREAM") },
    { "with underscores", with("X_Kube_Coders_Upstream", "x-kube_coders-upstream", "X_KUBE-CODERS_UPSTREAM") },
    { "with every underscore, and itself", with(unpack(TWINS)) },
}

return function(case)
    for _, spoof in ipairs(SPOOFS) do
        for _, remember in ipairs({ 0, 10 }) do
            case(("a client's header %s is no decision, remember %d"):format(spoof[1], remember), function()
                local outcome = stand_in.serve(stand_in.worker(), { headers = spoof[2], remember = remember })
                expect.refused(outcome, "no decision", { "10.6.6.6", "mallory" })
            end)
            case(("a client's header %s and the runner's, remember %d"):format(spoof[1], remember), function()
                local outcome = stand_in.serve(stand_in.worker(), {
                    headers = spoof[2], remember = remember, runner = decision.runner(decision.of()),
                })
                expect.went_to(outcome, "10.0.0.1:8443")
                expect.same(outcome.key, "http://code-alice.ns.svc.cluster.local:8443")
            end)
        end
    end

    case("the runner does not see a client's header", function()
        local seen
        stand_in.serve(stand_in.worker(), {
            headers = with(HEADER, "X_Kube_Coders_Upstream"),
            runner = function() seen = ngx.req.get_headers(0) end,
        })
        expect.same(rawget(seen, HEADER), nil)
        expect.same(rawget(seen, "x_kube_coders_upstream"), nil)
    end)

    case("a client's header behind 150 others is dropped", function()
        for _, name in ipairs({ HEADER, "X_Kube_Coders_Upstream" }) do
            local headers = {}
            for i = 1, 150 do headers[i] = { "X-Filler-" .. i, "1" } end
            headers[151] = { name, SPOOFED }
            expect.refused(stand_in.serve(stand_in.worker(), { headers = headers }), "no decision")
            local runner = decision.runner(decision.of())
            expect.went_to(stand_in.serve(stand_in.worker(), { headers = headers, runner = runner }), "10.0.0.1:8443")
        end
    end)

    case("headers with a name like it stay", function()
        local outcome = stand_in.serve(stand_in.worker(), {
            headers = { { "Host", "a" }, { "X-Kube-Coders-Upstream-2", "1" }, { "X-Kube-Coders", "2" } },
            runner = decision.runner(decision.of()),
        })
        expect.went_to(outcome, "10.0.0.1:8443")
        expect.same(rawget(outcome.headers, "x-kube-coders-upstream-2"), "1")
        expect.same(rawget(outcome.headers, "x-kube-coders"), "2")
    end)

    case("no decision is refused", function()
        expect.refused(stand_in.serve(stand_in.worker(), {}), "no decision")
    end)

    case("two decisions are refused", function()
        local outcome = stand_in.serve(stand_in.worker(), {
            runner = function(ctx, set_header)
                local text = decision.text(decision.of())
                set_header(ctx, HEADER, { text, text })
            end,
        })
        expect.refused(outcome, "more than one", { "alice", "10.0.0.1" })
    end)

    case("a decision together with an underscore twin, or in one, is refused", function()
        for _, names in ipairs({ { HEADER, "x_kube_coders_upstream" }, { "x-kube_coders-upstream" } }) do
            local outcome = stand_in.serve(stand_in.worker(), {
                runner = function(ctx, set_header)
                    for _, name in ipairs(names) do set_header(ctx, name, decision.text(decision.of())) end
                end,
            })
            expect.refused(outcome, "more than one")
        end
    end)

    case("the runner's header is found behind 150 others", function()
        local headers = { { "Host", "coders.example.com" } }
        for i = 1, 150 do headers[#headers + 1] = { "X-Filler-" .. i, "1" } end
        local outcome = stand_in.serve(stand_in.worker(), {
            headers = headers, runner = decision.runner(decision.of()),
        })
        expect.went_to(outcome, "10.0.0.1:8443")
    end)

    case("a header table that the gateway kept is not believed", function()
        local outcome = stand_in.serve(stand_in.worker(), {
            between = function(ctx)
                ngx.req.set_header("x-other", "1")
                ctx.headers = { [HEADER] = SPOOFED }
                ctx.var["http_x_kube_coders_upstream"] = SPOOFED
            end,
        })
        expect.refused(outcome, "no decision")
    end)

    case("without its rewrite phase nothing counts", function()
        local outcome = stand_in.serve(stand_in.worker(), { headers = with(HEADER), skips_rewrite = true })
        expect.refused(outcome, "rewrite phase")
    end)
end
