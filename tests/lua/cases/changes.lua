-- SPDX-License-Identifier: Apache-2.0
-- What a cached decision changes of a request, and that cookies are edited as the runner does it.
local cjson = require("cjson.safe")
local decision = require("decision")
local expect = require("expect")
local stand_in = require("stand_in")

local VECTORS = "crates/runner/tests/vectors/cookies.json"

-- A request that is answered from the cache, by a decision with these changes.
local function changed(headers, changes, between, plugin)
    plugin = plugin or stand_in.worker()
    local fields = decision.cacheable(changes)
    fields.cache.headers = { "x-key" }
    local runner = decision.runner(fields)
    -- Each decision has a route of its own, so that a worker can serve many.
    local version = plugin.version_for_test or 0
    plugin.version_for_test = version + 1
    local asked = { headers = headers, between = between, runner = runner, remember = 10, conf_version = version }
    stand_in.serve(plugin, { headers = { { "Host", headers and headers[1][2] or "coders.example.com" } },
        runner = runner, remember = 10, conf_version = version })
    local outcome = stand_in.serve(plugin, asked)
    expect.same(outcome.is_called, false, "whether the runner was called")
    return outcome
end

local function values_of(outcome, name)
    return rawget(outcome.headers, name)
end

-- What becomes of Cookie headers: false where nothing changes, an empty text where none is left.
local function edit(cookies, names, plugin)
    local headers = { { "Host", "coders.example.com" } }
    for _, cookie in ipairs(cookies) do headers[#headers + 1] = { "Cookie", cookie } end
    local outcome = changed(headers, { cookies = names, set = {}, remove = {} }, nil, plugin)
    expect.same(outcome.status, nil, "the status")
    local left = values_of(outcome, "cookie")
    local before = cookies[2] and cookies or cookies[1]
    if type(left) == type(before) and cjson.encode({ left }) == cjson.encode({ before }) then return false end
    return left or ""
end

-- The runner's own steps, byte by byte, to compare with.
local function reference(cookies, names)
    local WHITE = " \t\n\f\r"
    local function is_white(text, at) return WHITE:find(text:sub(at, at), 1, true) ~= nil end
    local function trimmed_start(text)
        while text ~= "" and is_white(text, 1) do text = text:sub(2) end
        return text
    end
    local function trimmed(text)
        text = trimmed_start(text)
        while text ~= "" and is_white(text, #text) do text = text:sub(1, -2) end
        return text
    end
    local function pairs_of(header)
        local found, rest = {}, header
        while rest do
            local at = rest:find(";", 1, true)
            found[#found + 1] = at and rest:sub(1, at - 1) or rest
            rest = at and rest:sub(at + 1)
        end
        return found
    end
    local function is_removed(pair)
        local at = pair:find("=", 1, true)
        local name = trimmed(at and pair:sub(1, at - 1) or pair)
        for _, removed in ipairs(names) do
            if name == removed then return true end
            if name:sub(1, #removed) == removed then
                local rest = name:sub(#removed + 1)
                if rest:sub(1, 1) == "_" then rest = rest:sub(2) end
                if rest ~= "" and not rest:find("[^0-9]") then return true end
            end
        end
        return false
    end
    local is_any, kept = false, ""
    for _, header in ipairs(cookies) do
        for _, pair in ipairs(pairs_of(header)) do is_any = is_any or is_removed(pair) end
    end
    if not is_any then return false end
    for _, header in ipairs(cookies) do
        local is_first = true
        for _, pair in ipairs(pairs_of(header)) do
            if not is_removed(pair) then
                if is_first and kept ~= "" then kept = kept .. "; " elseif kept ~= "" then kept = kept .. ";" end
                kept = kept .. (is_first and trimmed_start(pair) or pair)
                is_first = false
            end
        end
    end
    if kept:find("[\r\n%z]") or not kept:find("[^ \t;]") then return "" end
    return kept
end

return function(case)
    case("set replaces every value, remove takes every value, the rest stays", function()
        local outcome = changed({
            { "Host", "coders.example.com" }, { "X-Forwarded-User", "mallory" }, { "x-forwarded-user", "root" },
            { "X-Access-Token", "t1" }, { "X-ACCESS-TOKEN", "t2" }, { "Accept", "a" }, { "Accept", "b" },
            { "Cookie", "a=1; session=x" },
        })
        expect.went_to(outcome, "10.0.0.1:8443")
        expect.same(values_of(outcome, "x-forwarded-user"), "alice")
        expect.same(values_of(outcome, "x-access-token"), nil)
        expect.same(values_of(outcome, "accept"), { "a", "b" })
        expect.same(values_of(outcome, "cookie"), "a=1")
        expect.same(values_of(outcome, "host"), "coders.example.com")
    end)

    case("the gateway's own table of headers follows", function()
        local outcome = changed({
            { "Host", "coders.example.com" }, { "X-Access-Token", "t" }, { "Cookie", "session=x" },
        }, nil, function(ctx) stand_in.core.request.headers(ctx) end)
        expect.same(outcome.kept_headers["x-access-token"], nil)
        expect.same(outcome.kept_headers["x-kube-coders-upstream"], nil)
        expect.same(outcome.kept_headers["cookie"], nil)
        expect.same(outcome.kept_headers["x-forwarded-user"], "alice")
    end)

    case("a header that is removed and set is set", function()
        local outcome = changed(nil, { remove = { "x-a" }, set = { ["x-a"] = "1" } })
        expect.same(values_of(outcome, "x-a"), "1")
    end)

    case("a decision that does not last changes nothing", function()
        local headers = { { "Host", "a" }, { "X-Access-Token", "t" }, { "Cookie", "session=x" } }
        local outcome = stand_in.serve(stand_in.worker(), {
            headers = headers, remember = 10, runner = decision.runner(decision.of()),
        })
        expect.went_to(outcome, "10.0.0.1:8443")
        expect.same(values_of(outcome, "x-access-token"), "t")
        expect.same(values_of(outcome, "cookie"), "session=x")
        expect.same(values_of(outcome, "x-forwarded-user"), nil)
    end)

    local file = assert(io.open(VECTORS))
    local vectors = assert(cjson.decode(file:read("*a")))
    file:close()
    case("there are cases in " .. VECTORS, function() assert(#vectors > 30, #vectors) end)
    for i, vector in ipairs(vectors) do
        local cookie, remove = cjson.encode(vector.cookie), cjson.encode(vector.remove)
        case(("cookies, case %d: %s without %s"):format(i, cookie, remove), function()
            local expected = vector.expected ~= cjson.null and vector.expected
            expect.same(edit(vector.cookie, vector.remove), expected)
            expect.same(reference(vector.cookie, vector.remove), expected, "the reference")
        end)
    end

    local seed = tonumber(os.getenv("KUBE_CODERS_SEED")) or os.time()
    case(("cookies made at random are edited as the runner does it (KUBE_CODERS_SEED=%d)"):format(seed), function()
        math.randomseed(seed)
        local PIECES = { "session", "sid", "a", "b", "=", ";", ";", " ", "\t", "\r", "\n", "\f", "\v", "_", "2", "\"",
                         "\255", "\0", "" }
        local edits, plugin = 0, stand_in.worker()
        for _ = 1, 20000 do
            local cookies = {}
            for i = 1, math.random(0, 3) do
                local pieces = {}
                for j = 1, math.random(0, 12) do pieces[j] = PIECES[math.random(#PIECES)] end
                cookies[i] = table.concat(pieces)
            end
            local names = ({ { "session" }, { "sid", "session" }, { "a" } })[math.random(3)]
            local expected = reference(cookies, names)
            local found = edit(cookies, names, plugin)
            -- A header that says the same afterwards is as good as one that was left alone.
            if not found and expected then expect.same(expected, cookies[1] or "") else expect.same(found, expected) end
            edits = edits + (expected and 1 or 0)
        end
        assert(edits > 1000, edits)
    end)

    case("a long row of spaces costs no time to speak of", function()
        local started = os.clock()
        for _, cookie in ipairs({
            "a" .. (" "):rep(30000) .. "b=1; session=x", (" "):rep(30000) .. "; session=x",
            (" ;"):rep(15000) .. "session=x", ("session=x;"):rep(3000), "session" .. ("2"):rep(30000) .. "x; session=x",
        }) do
            edit({ cookie }, { "session", "sid" })
        end
        assert(os.clock() - started < 1, "it took more than a second")
    end)
end
