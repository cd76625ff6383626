-- SPDX-License-Identifier: Apache-2.0
-- The gateway makes the call from a client's first 100 header lines. A request is refused if a line that the runner
-- would remove or reject is not among them: the user's own workspace must not get the session's cookie.
local decision = require("decision")
local expect = require("expect")
local stand_in = require("stand_in")

local SESSION = { "Cookie", "session=secret" }

-- Lines of a client: so many of this name, and then these.
local function lines(count, name, ...)
    local all = { { "Host", "coders.example.com" } }
    while #all < count do all[#all + 1] = { name, "1" } end
    for _, line in ipairs({ ... }) do all[#all + 1] = line end
    return all
end

-- openid-connect reads the headers, drops those that only it may set, and adds the user.
local function login(ctx, set_header)
    stand_in.core.request.headers(ctx)
    set_header(ctx, "X-Access-Token", nil)
    set_header(ctx, "X-Userinfo", "alice")
end

local function served(headers, before, remember)
    return stand_in.serve(stand_in.worker(), {
        headers = headers, before = before, remember = remember, runner = decision.runner(decision.of()),
    })
end

return function(case)
    for _, remember in ipairs({ 0, 10 }) do
        case("the 101st line is hidden, remember " .. remember, function()
            expect.too_many_lines(served(lines(100, "X-Filler", SESSION), nil, remember))
            expect.too_many_lines(served(lines(100, "X-Filler", SESSION), login, remember))
            expect.too_many_lines(served(lines(100, "X-Filler", { "X_Forwarded_User", "mallory" }), login, remember))
            expect.too_many_lines(served(lines(100, "Cookie", SESSION), login, remember))
        end)

        case("a line is hidden by lines that the login dropped, remember " .. remember, function()
            local outcome = served(lines(100, "X-Access-Token", SESSION), login, remember)
            expect.too_many_lines(outcome)
            local known = 0
            for _ in pairs(outcome.kept_headers) do known = known + 1 end
            assert(known < 100, known)
        end)

        case("no line is hidden, remember " .. remember, function()
            expect.went_to(served(lines(99, "X-Filler", SESSION), nil, remember), "10.0.0.1:8443")
            expect.went_to(served(lines(99, "X-Filler", SESSION), login, remember), "10.0.0.1:8443")
            expect.went_to(served(lines(60, "X-Access-Token", SESSION), login, remember), "10.0.0.1:8443")
        end)
    end

    case("a line that the gateway does not know is no hidden cookie", function()
        expect.went_to(served(lines(5, "X-Filler", SESSION, SESSION), function(ctx)
            stand_in.core.request.headers(ctx)
            -- nginx does this for a new body.
            stand_in.add_line("Content-Length", "3")
        end), "10.0.0.1:8443")
    end)
end
