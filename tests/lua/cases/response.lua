-- SPDX-License-Identifier: Apache-2.0
-- A workspace's response may not speak for the gateway: it sets no cookie that the gateway reads, none for other hosts
-- of the domain, and no header that holds for all that is at the gateway's origin.
local decision = require("decision")
local expect = require("expect")
local stand_in = require("stand_in")

local NAMES = { "session", "own" }

local function answered(response, before, changes, remember)
    changes = changes or { removed_cookies = NAMES }
    return stand_in.serve(stand_in.worker(), {
        response = response, before = before, remember = remember,
        runner = decision.runner(decision.of(changes)),
    }).response
end

-- What is left of one cookie of the workspace.
local function cookie(text)
    return answered({ { "Set-Cookie", text } })["set-cookie"]
end

return function(case)
    case("a cookie of the workspace's own passes byte for byte", function()
        for _, text in ipairs({
            "vscode-tkn=abc; Path=/; HttpOnly", "a=b", "a=", "sessions=1", "session_a=1; SameSite=Lax",
            "a=session; x=domain", "a=\"b\"; Expires=Thu, 01 Jan 2026 00:00:00 GMT; Secure", "Session=1", "=x", "",
        }) do
            expect.same(cookie(text), text)
        end
    end)

    case("a cookie that the gateway reads is not set", function()
        for _, text in ipairs({
            "session=x", "session=x; Path=/", " session = x", "session", "session2=x", "session_2=x; Max-Age=0", "own=",
            "=session=x", " = session=x", "==session=x", "__Host-kube-coders-user=x; Secure; Path=/",
            "__host-KUBE-coders=x", "\tsession\t=x",
        }) do
            expect.same(cookie(text), nil, text)
        end
    end)

    case("a cookie stays at its host", function()
        for text, left in pairs({
            ["a=b; Domain=example.com"] = "a=b",
            ["a=b;domain=.example.com; Path=/"] = "a=b; Path=/",
            ["a=b; Path=/x; DOMAIN = com ; Secure"] = "a=b; Path=/x; Secure",
            ["a=b; Domain"] = "a=b",
            ["a=b; Domain=; Domain=example.com"] = "a=b",
            ["a=b; \tDomain=example.com"] = "a=b",
            ["domain=b; x-domain=c"] = "domain=b; x-domain=c",
        }) do
            expect.same(cookie(text), left, text)
        end
    end)

    case("what the gateway sets itself stays", function()
        local response = answered({
            { "Set-Cookie", "session=stolen" }, { "Set-Cookie", "a=1" }, { "Set-Cookie", "session=renewed; Path=/" },
            { "Strict-Transport-Security", "max-age=0" },
        }, function()
            ngx.header["Set-Cookie"] = { "session=renewed; Path=/", "session2=more" }
            ngx.header["Strict-Transport-Security"] = "max-age=31536000"
        end)
        expect.same(response["set-cookie"], { "session=renewed; Path=/", "session2=more", "a=1" })
        expect.same(response["strict-transport-security"], "max-age=31536000")
    end)

    case("headers that hold for the whole origin are removed, and no other", function()
        local response = answered({
            { "Clear-Site-Data", '"*"' }, { "NEL", "{}" }, { "Report-To", "{}" }, { "Report-To", "{}" },
            { "Reporting-Endpoints", 'a="https://evil.example"' }, { "ALT-SVC", 'h3="evil.example:443"' },
            { "Strict-Transport-Security", "max-age=0" }, { "service-worker-allowed", "/" },
            { "Sec-Session-Registration", "(ES256)" }, { "Secure-Session-Registration", "(ES256)" },
            { "Set-Login", "logged-in" }, { "Content-Type", "text/html" }, { "Cache-Control", "no-store" },
        })
        expect.same(response, { ["content-type"] = "text/html", ["cache-control"] = "no-store" })
    end)

    case("a hit is filtered as well", function()
        local plugin = stand_in.worker()
        for _, is_called in ipairs({ true, false }) do
            local outcome = stand_in.serve(plugin, {
                remember = 10, response = { { "Set-Cookie", "session=x" }, { "NEL", "{}" } },
                headers = { { "Host", "a" }, { "X-Userinfo", "alice" } },
                runner = decision.runner(decision.cacheable()),
            })
            expect.same(outcome.is_called, is_called)
            expect.same(outcome.response, {})
        end
    end)

    case("an error lets nothing pass", function()
        local plugin = stand_in.worker()
        local outcome = stand_in.serve(plugin, {
            response = { { "Set-Cookie", "a=b" }, { "NEL", "{}" }, { "Content-Type", "text/html" } },
            runner = decision.runner(decision.of({ removed_cookies = NAMES })),
            between = function(ctx) ctx.var.request_id = "x" end,
            spoil_response = true,
        })
        expect.same(outcome.response, { ["content-type"] = "text/html", ["cache-control"] = "no-store" })
    end)

    local function caching(status, response)
        local left = stand_in.serve(stand_in.worker(), {
            response = response, response_status = status, runner = decision.runner(decision.of()),
        }).response
        return { left["cache-control"], left.expires, left.pragma }
    end

    local KEPT = { "Cache-Control", "max-age=9, immutable" }

    case("what a browser could open is asked for each time", function()
        for _, kind in ipairs({
            "text/html", "TEXT/HTML; charset=utf-8", "application/xhtml+xml", "image/svg+xml", "Image/SVG",
            "text/plain", "multipart/x-mixed-replace", "text/css, text/html", "text/css;a=b, text/html", "", " ",
        }) do
            for _, status in ipairs({ 200, 404 }) do
                local expires = { "Expires", "Thu, 01 Jan 2099 00:00:00 GMT" }
                local found = caching(status, { { "Content-Type", kind }, KEPT, expires })
                expect.same(found, { "no-cache" }, kind)
            end
        end
        for _, line in ipairs({ KEPT, { "Last-Modified", "Thu, 01 Jan 1970 00:00:00 GMT" }, { "Pragma", "x" } }) do
            expect.same(caching(200, { line }), { "no-cache" })
        end
        local inert = { "Content-Type", "image/png" }
        expect.same(caching(200, { inert, KEPT, { "Refresh", "0;url=/x" } }), { "no-cache" })
        expect.same(caching(200, { { "Cache-Control", 'a=", no-store, "' } }), { "no-cache" })
        expect.same(caching(200, { { "Cache-Control", "no-stores" } }), { "no-cache" })
        for _, status in ipairs({ 300, 301, 308, 410 }) do
            expect.same(caching(status, { inert }), { "no-cache" }, status)
            expect.same(caching(status, { inert, { "Cache-Control", "no-store" } }), { "no-store" }, status)
        end
        expect.same(caching(302, { inert, KEPT }), { "no-cache" })
    end)

    case("the parts of a page are kept as the workspace says", function()
        for _, kind in ipairs({
            "text/css", "text/javascript; charset=utf-8", "Image/PNG", "font/woff2", "application/wasm", "video/mp4",
        }) do
            expect.same(caching(200, { { "Content-Type", kind }, KEPT }), { "max-age=9, immutable" }, kind)
        end
        expect.same(caching(200, { { "Content-Type", "text/html" } }), {})
        local never = { "Cache-Control", "private, No-Store" }
        expect.same(caching(200, { { "Content-Type", "text/html" }, never }), { "private, No-Store" })
    end)

    case("an unchanged document does not become one that is kept", function()
        expect.same(caching(304, { KEPT }), {})
        expect.same(caching(304, { { "Content-Type", "text/css" }, KEPT }), {})
    end)

    case("no script of a service worker for the whole origin is fetched", function()
        local function fetched(target, value)
            return stand_in.serve(stand_in.worker(), {
                target = target, headers = { { "Host", "a" }, { "Service-Worker", value } },
                runner = decision.runner(decision.of()),
            })
        end
        for _, target in ipairs({
            "/sw.js", "/sw.js?a=/b/c", "/", "/proxy/sw.js", "/proxy/3000/a/sw.js?x", "/absproxy/8080/sw.js",
        }) do
            local outcome = fetched(target, "script")
            expect.same({ outcome.status, outcome.is_called }, { 403, false }, target)
            expect.same(stand_in.cjson.decode(outcome.body).code, "worker-refused")
            expect.same(fetched(target, " SCRIPT ").status, 403)
            expect.went_to(fetched(target, "scripts"), "10.0.0.1:8443")
        end
        for _, target in ipairs({ "/a/sw.js", "/stable-1/out/pre/service-worker.js?v=4", "//sw.js", "/proxy-a/sw.js",
            "/a/proxy/3000/sw.js" }) do
            expect.went_to(fetched(target, "script"), "10.0.0.1:8443")
        end
    end)

    case("a malformed list of cookies is no decision", function()
        for _, list in ipairs({ "session", { "a b" }, { 7 }, { "" }, { a = "b" } }) do
            local outcome = stand_in.serve(stand_in.worker(), {
                runner = decision.runner(decision.of({ removed_cookies = list })),
            })
            expect.refused(outcome, "a malformed decision: removed_cookies")
        end
    end)
end
