-- SPDX-License-Identifier: Apache-2.0
-- Two requests share a cached decision only if they are equal in everything that it depended on, whatever their
-- headers contain.
local decision = require("decision")
local expect = require("expect")
local stand_in = require("stand_in")

local TRIES = 4000
local NAMES = { "x-a", "x-b", "host", "origin", "x-a-b", "upgrade" }
-- Few values, so that equal requests come up. Some try to look like the encoding.
local VALUES = { "", "a", "b", "a, b", "a,b", ", ", "1:a", "1:a1:b", "0:", "3:x-a1;1:a", "x-b", "2;", "1;0:", "nil",
                 "-", "\0", "\255", ("a"):rep(10), "10:" .. ("a"):rep(10) }
local ROUTES = { "a", "b", "1:a", "a1:b", "" }
local VERSIONS = { 1, "1", 11, "1&1", 1700000000, 1700000001 }

local function pick(list)
    return list[math.random(#list)]
end

local function some_headers()
    local headers = {}
    for _, name in ipairs(NAMES) do
        for _ = 1, pick({ 0, 0, 1, 1, 1, 2 }) do
            headers[#headers + 1] = { math.random(12) == 1 and name:gsub("-", "_", 1) or name, pick(VALUES) }
        end
    end
    if math.random(4) == 1 then headers[#headers + 1] = { "x-other", pick(VALUES) } end
    return headers
end

local function some_request()
    return {
        headers = some_headers(), scheme = pick({ "http", "https" }), route_id = pick(ROUTES),
        conf_version = pick(VERSIONS), remember = 10,
    }
end

-- A request that differs from another in one thing, if at all.
local function near(request)
    local other = {}
    for name, value in pairs(request) do other[name] = value end
    other.headers = {}
    for i, header in ipairs(request.headers) do other.headers[i] = { header[1], header[2] } end
    local at = math.random(#other.headers + 1)
    local change = math.random(8)
    if change == 1 then
        other.scheme = other.scheme == "http" and "https" or "http"
    elseif change == 2 then
        other.conf_version = pick(VERSIONS)
    elseif change == 3 then
        other.route_id = pick(ROUTES)
    elseif change == 4 then
        table.remove(other.headers, at)
    elseif change == 5 then
        table.insert(other.headers, at, { pick(NAMES), pick(VALUES) })
    elseif change == 6 and other.headers[at] then
        other.headers[at][2] = pick(VALUES)
    elseif change == 7 and other.headers[at] then
        other.headers[at][1] = pick(NAMES)
    end
    return other
end

-- All that a decision by these headers depends on, as a text that differs for different inputs; nil if the request
-- has a name with an underscore.
local function inputs(request, by)
    local parts = { tostring(request.conf_version), request.scheme, request.route_id }
    local values = {}
    for _, header in ipairs(request.headers) do
        if header[1]:find("_", 1, true) then return nil end
        values[header[1]] = values[header[1]] or {}
        table.insert(values[header[1]], header[2])
    end
    for _, name in ipairs(by) do parts[#parts + 1] = values[name] or false end
    -- The Host that goes upstream is an input even if the list does not name it.
    parts[#parts + 1] = table.concat(values.host or {}, ", ")
    -- So is whether the request wants to go on in another protocol.
    parts[#parts + 1] = values.upgrade ~= nil
    return stand_in.cjson.encode(parts)
end

return function(case)
    local seed = tonumber(os.getenv("KUBE_CODERS_SEED")) or os.time()
    local title = ("requests at random share a decision only if they are equal (KUBE_CODERS_SEED=%d)"):format(seed)
    case(title, function()
        math.randomseed(seed)
        local hits, misses = 0, 0
        for _ = 1, TRIES do
            local by = {}
            for _, header in ipairs(NAMES) do
                if math.random(2) == 1 then by[#by + 1] = header end
            end
            if not by[1] then by[1] = "x-a" end
            local plugin = stand_in.worker()
            local first = some_request()
            first.runner = decision.runner(decision.cacheable({ headers = by }))
            stand_in.serve(plugin, first)
            local second = math.random(3) == 1 and some_request() or near(first)
            second.runner = decision.runner(decision.cacheable({ headers = by, addresses = { "10.0.0.2" } }))
            local outcome = stand_in.serve(plugin, second)
            local expected, found = inputs(first, by), inputs(second, by)
            local is_equal = expected ~= nil and expected == found
            if is_equal == outcome.is_called then
                error(("by %s: %s and %s %s"):format(stand_in.cjson.encode(by), expected, found,
                    outcome.is_called and "did not share one" or "shared one"))
            end
            expect.went_to(outcome, outcome.is_called and "10.0.0.2:8443" or "10.0.0.1:8443")
            hits, misses = hits + (outcome.is_called and 0 or 1), misses + (outcome.is_called and 1 or 0)
        end
        assert(hits > TRIES / 10 and misses > TRIES / 10, hits .. " hits, " .. misses .. " misses")
    end)

    case("requests that concatenation would make equal are not", function()
        local LISTS = { { "x-a" }, { "x-a", "x-b" }, { "x-b", "x-a" }, { "x-a-b" }, { "x-a", "x-a" } }
        local A = { {}, { "" }, { "a" }, { "ab" }, { "a", "b" }, { "ab", "" }, { "", "ab" }, { "a, b" }, { "1:a" },
                    { "a1:b" }, { "1:a1:b" }, { "1:a", "1:b" }, { "a1:", "b" }, { "a", "", "" }, { "1;1:a" },
                    { "x-b" } }
        local B = { {}, { "" }, { "b" }, { "1:b" }, { ", b" }, { "ab", "" }, { "x-b" } }
        local seen, count = {}, 0
        for _, by in ipairs(LISTS) do
            for _, a in ipairs(A) do
                for _, b in ipairs(B) do
                    local headers = { { "Host", "h" } }
                    for _, value in ipairs(a) do headers[#headers + 1] = { "X-A", value } end
                    for _, value in ipairs(b) do headers[#headers + 1] = { "X-B", value } end
                    stand_in.serve(stand_in.worker(), {
                        headers = headers, remember = 10,
                        runner = decision.runner(decision.cacheable({ headers = by })),
                    })
                    local values = { ["x-a"] = a, ["x-b"] = b, ["x-a-b"] = {} }
                    local parts = { by }
                    for _, name in ipairs(by) do parts[#parts + 1] = values[name] end
                    local expected, text = stand_in.cjson.encode(parts), package.loaded["resty.sha256"].last_digested
                    assert(not seen[text] or seen[text] == expected, text)
                    count = count + (seen[text] and 0 or 1)
                    seen[text] = expected
                end
            end
        end
        expect.same(count, #A + 2 * #A * #B + 1 + #A, "the number of different keys")
    end)
end
