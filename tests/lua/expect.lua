-- SPDX-License-Identifier: Apache-2.0
-- What the cases say about an outcome; an error names what was there instead.
local cjson = require("cjson.safe")
local stand_in = require("stand_in")

local expect = {}

local function shown(value)
    return type(value) == "table" and (cjson.encode(value) or "a table") or tostring(value)
end

local function is_same(a, b)
    if type(a) ~= "table" or type(b) ~= "table" then return a == b end
    for name in pairs(a) do
        if not is_same(a[name], rawget(b, name)) then return false end
    end
    for name in pairs(b) do
        if rawget(a, name) == nil then return false end
    end
    return true
end

function expect.same(found, expected, what)
    if not is_same(found, expected) then
        error(("%s is %s, not %s"):format(what or "it", shown(found), shown(expected)), 2)
    end
end

-- The request went to this address, and the runner's header did not go with it.
function expect.went_to(outcome, address)
    if outcome.status then error("it was answered with " .. outcome.status, 2) end
    if outcome.went_to.is_routes_own then error("it went to the route's own upstream", 2) end
    local found = outcome.went_to.host .. ":" .. outcome.went_to.port
    if found ~= address then error(("it went to %s, not to %s"):format(found, address), 2) end
    for name in pairs(outcome.headers) do
        if name:gsub("_", "-") == "x-kube-coders-upstream" then error("the decision went with it", 2) end
    end
end

-- The gateway answered, went nowhere, and logged one line that has `why` in it and none of `secrets`.
function expect.refused(outcome, why, secrets)
    if outcome.status ~= 503 then error("it was not refused but went to " .. shown(outcome.went_to), 2) end
    local body = cjson.decode(outcome.body)
    expect.same(body, {
        type = "about:blank", title = "Service Unavailable", status = 503, code = "decision-missing",
        request_id = "0123456789abcdef",
    }, "the body")
    expect.same(outcome.response_headers, { ["Content-Type"] = "application/problem+json", ["Retry-After"] = "2" })
    local lines = {}
    for i = outcome.log_from, #stand_in.log do lines[#lines + 1] = stand_in.log[i] end
    expect.same(#lines, 1, "the number of lines logged")
    expect.same(lines[1].level, "error", "the line's level")
    if not lines[1].text:find(why, 1, true) then
        error(("%q was logged, without %q"):format(lines[1].text, why), 2)
    end
    for _, secret in ipairs(secrets or {}) do
        if secret ~= "" and lines[1].text:find(secret, 1, true) then error(secret .. " was logged", 2) end
    end
end

-- The gateway answered 431 because the runner would not have seen all header lines, and went nowhere.
function expect.too_many_lines(outcome)
    if outcome.status ~= 431 then error("it was not refused but went to " .. shown(outcome.went_to), 2) end
    expect.same(outcome.is_called, false, "whether the runner was called")
    expect.same(cjson.decode(outcome.body), {
        type = "about:blank", title = "Request Header Fields Too Large", status = 431, code = "too-many-headers",
        request_id = "0123456789abcdef",
    }, "the body")
    expect.same(outcome.response_headers, { ["Content-Type"] = "application/problem+json" })
    expect.same(stand_in.log[#stand_in.log].level, "info", "the line's level")
end

return expect
