-- SPDX-License-Identifier: Apache-2.0
-- Decisions that are none. Each is refused, and nothing of it is logged.
local decision = require("decision")
local expect = require("expect")
local stand_in = require("stand_in")

-- What stands in good decisions and may not be logged.
local SECRETS = { "alice", "10.0.0.1", "8443", "session", "x-userinfo", "x-access-token", "svc" }

local function with_field(fields, name, json)
    fields[name] = nil
    local text = decision.text(fields)
    return json and '{"' .. name .. '":' .. json .. "," .. text:sub(2) or text
end

-- A decision's text with one field in other words, or without it.
local function field(name, json)
    return with_field(decision.of(), name, json)
end

-- The same for a field of what lets it be cached.
local function cached(name, json)
    local fields = decision.cacheable({ digest = ("0"):rep(64) })
    fields.cache.digest = ("0"):rep(64)
    local text = with_field(fields.cache, name, json)
    if name == "digest" and not json then text = text:gsub(',?"digest":"0*"', "") end
    fields.cache = nil
    return with_field(fields, "cache", text)
end

local CASES = {
    -- name, text, and what is logged of it
    { "a space", " ", "no object" },
    { "no JSON", "http://code-alice:8443", "no object" },
    { "half of it", decision.text(decision.of()):sub(1, -2), "no object" },
    { "more after it", decision.text(decision.of()) .. "x", "no object" },
    { "two in one", decision.text(decision.of()) .. ", " .. decision.text(decision.of()), "no object" },
    { "a list", "[" .. decision.text(decision.of()) .. "]", "no object" },
    { "a text", '"alice"', "no object" },
    { "a number", "1", "no object" },
    { "null", "null", "no object" },
    { "true", "true", "no object" },
    { "a deep list", ("["):rep(8000) .. ("]"):rep(8000), "no object" },
    { "an object without fields", "{}", "v" },
    { "more than 16 KiB", decision.text(decision.of({ more = ("x"):rep(16384) })), "too long a" },
    { "v missing", field("v"), "v" },
    { "v 2", field("v", "2"), "v" },
    { "v as a text", field("v", '"1"'), "v" },
    { "v null", field("v", "null"), "v" },
    { "scheme missing", field("scheme"), "scheme" },
    { "scheme in capitals", field("scheme", '"HTTP"'), "scheme" },
    { "scheme of another kind", field("scheme", '"kafka"'), "scheme" },
    { "scheme null", field("scheme", "null"), "scheme" },
    { "scheme a list", field("scheme", '["http"]'), "scheme" },
    { "host missing", field("host"), "host" },
    { "host empty", field("host", '""'), "host" },
    { "host in capitals", field("host", '"Code-alice"'), "host" },
    { "host with a port", field("host", '"code-alice:1"'), "host" },
    { "host with a path", field("host", '"code-alice/x"'), "host" },
    { "host with a space", field("host", '"code alice"'), "host" },
    { "host with a line's end", field("host", '"code-alice\\n"'), "host" },
    { "host with NUL", field("host", '"code-alice\\u0000"'), "host" },
    { "host with a final dot", field("host", '"code-alice."'), "host" },
    { "host with two dots", field("host", '"code..alice"'), "host" },
    { "host with a dot first", field("host", '".alice"'), "host" },
    { "host with a hyphen first", field("host", '"-alice"'), "host" },
    { "host with a label that begins with a hyphen", field("host", '"code.-alice"'), "host" },
    { "host with a label that ends with a hyphen", field("host", '"code-.alice"'), "host" },
    { "host that ends with a hyphen", field("host", '"code-alice-"'), "host" },
    { "host nearly an address", field("host", '"10.0.0.256"'), "host" },
    { "host with brackets", field("host", '"[fd00::1]"'), "host" },
    { "host of 254 bytes", field("host", '"' .. ("a"):rep(254) .. '"'), "host" },
    { "host a number", field("host", "1"), "host" },
    { "host null", field("host", "null"), "host" },
    { "port missing", field("port"), "port" },
    { "port 0", field("port", "0"), "port" },
    { "port 65536", field("port", "65536"), "port" },
    { "port with a fraction", field("port", "8443.5"), "port" },
    { "port below zero", field("port", "-1"), "port" },
    { "port as a text", field("port", '"8443"'), "port" },
    { "port not a number", field("port", "nan"), "port" },
    { "port without end", field("port", "1e999"), "port" },
    { "port null", field("port", "null"), "port" },
    { "addresses missing", field("addresses"), "addresses" },
    { "addresses empty", field("addresses", "[]"), "addresses" },
    { "addresses an empty object", field("addresses", "{}"), "addresses" },
    { "addresses an object", field("addresses", '{"1":"10.0.0.1"}'), "addresses" },
    { "addresses a text", field("addresses", '"10.0.0.1"'), "addresses" },
    { "addresses null", field("addresses", "null"), "addresses" },
    { "nine addresses", field("addresses", '["10.0.0.1"' .. (',"10.0.0.1"'):rep(8) .. "]"), "addresses" },
    { "an address null", field("addresses", '["10.0.0.1",null]'), "addresses" },
    { "an address a number", field("addresses", "[10]"), "addresses" },
    { "an address empty", field("addresses", '[""]'), "addresses" },
    { "a name for an address", field("addresses", '["code-alice"]'), "addresses" },
    { "a name of hexadecimal digits for an address", field("addresses", '["cafe"]'), "addresses" },
    { "a name behind an address", field("addresses", '["10.0.0.1","localhost"]'), "addresses" },
    { "an address with a port", field("addresses", '["10.0.0.1:80"]'), "addresses" },
    { "an address with brackets", field("addresses", '["[fd00::1]"]'), "addresses" },
    { "an address with a zone", field("addresses", '["fe80::1%eth0"]'), "addresses" },
    { "an address with NUL", field("addresses", '["10.0.0.1\\u0000x"]'), "addresses" },
    { "an address with a space", field("addresses", '["10.0.0.1 "]'), "addresses" },
    { "an address in three parts", field("addresses", '["10.0.1"]'), "addresses" },
    { "an address as one number", field("addresses", '["167772161"]'), "addresses" },
    { "an address out of range", field("addresses", '["10.0.0.256"]'), "addresses" },
    { "timeout missing", field("timeout"), "timeout" },
    { "timeout a number", field("timeout", "6"), "timeout" },
    { "timeout null", field("timeout", "null"), "timeout" },
    { "timeout a list", field("timeout", "[6,300,300]"), "timeout" },
    { "timeout without read", field("timeout", '{"connect":6,"send":300}'), "timeout" },
    { "timeout 0", field("timeout", '{"connect":0,"send":300,"read":300}'), "timeout" },
    { "timeout below zero", field("timeout", '{"connect":6,"send":-1,"read":300}'), "timeout" },
    { "timeout less than a millisecond", field("timeout", '{"connect":0.0009,"send":1,"read":1}'), "timeout" },
    { "timeout not a number", field("timeout", '{"connect":6,"send":nan,"read":300}'), "timeout" },
    { "timeout without end", field("timeout", '{"connect":6,"send":1,"read":Infinity}'), "timeout" },
    { "timeout of more than a day", field("timeout", '{"connect":6,"send":1,"read":86401}'), "timeout" },
    { "timeout as a text", field("timeout", '{"connect":"6","send":1,"read":1}'), "timeout" },
    { "timeout of null", field("timeout", '{"connect":6,"send":1,"read":null}'), "timeout" },
    { "seconds 0", cached("seconds", "0"), "cache.seconds" },
    { "seconds below zero", cached("seconds", "-1"), "cache.seconds" },
    { "seconds more than 10", cached("seconds", "10.1"), "cache.seconds" },
    { "seconds not a number", cached("seconds", "nan"), "cache.seconds" },
    { "seconds as a text", cached("seconds", '"10"'), "cache.seconds" },
    { "seconds null", cached("seconds", "null"), "cache.seconds" },
    { "seconds true", cached("seconds", "true"), "cache.seconds" },
    { "headers missing", cached("headers", nil), "cache.headers" },
    { "headers null", cached("headers", "null"), "cache.headers" },
    { "headers a text", cached("headers", '"host"'), "cache.headers" },
    { "headers an object", cached("headers", '{"host":"host"}'), "cache.headers" },
    { "headers with a capital", cached("headers", '["Host"]'), "cache.headers" },
    { "headers with an underscore", cached("headers", '["x_userinfo"]'), "cache.headers" },
    { "headers with an empty name", cached("headers", '[""]'), "cache.headers" },
    { "headers with a line's end", cached("headers", '["host\\n"]'), "cache.headers" },
    { "headers with a number", cached("headers", "[1]"), "cache.headers" },
    { "headers with null", cached("headers", '["host",null]'), "cache.headers" },
    { "headers with 33 names", cached("headers", '["a"' .. (',"a"'):rep(32) .. "]"), "cache.headers" },
    { "cache null", field("cache", "null"), "cache" },
    { "cache a text", field("cache", '"alice"'), "cache" },
    { "cache a number", field("cache", "10"), "cache" },
    { "cache an empty object", field("cache", "{}"), "cache.seconds" },
    { "presence missing", cached("presence", nil), "cache.presence" },
    { "presence a text", cached("presence", '"host"'), "cache.presence" },
    { "presence with a capital", cached("presence", '["Host"]'), "cache.presence" },
    { "presence with an underscore", cached("presence", '["x_a"]'), "cache.presence" },
    { "presence with 33 names", cached("presence", '["a"' .. (',"a"'):rep(32) .. "]"), "cache.presence" },
    { "navigation missing", cached("navigation", nil), "cache.navigation" },
    { "navigation null", cached("navigation", "null"), "cache.navigation" },
    { "navigation a text", cached("navigation", '"true"'), "cache.navigation" },
    { "digest null", cached("digest", "null"), "cache.digest" },
    { "digest of 63 digits", cached("digest", '"' .. ("0"):rep(63) .. '"'), "cache.digest" },
    { "digest of 65 digits", cached("digest", '"' .. ("0"):rep(65) .. '"'), "cache.digest" },
    { "digest with capitals", cached("digest", '"' .. ("A"):rep(64) .. '"'), "cache.digest" },
    { "digest a number", cached("digest", "0"), "cache.digest" },
    { "set missing", cached("set", nil), "cache.set" },
    { "set null", cached("set", "null"), "cache.set" },
    { "set a text", cached("set", '"x-a"'), "cache.set" },
    { "set a list", cached("set", '["x-a"]'), "cache.set" },
    { "set with a capital", cached("set", '{"X-A":"alice"}'), "cache.set" },
    { "set with an underscore", cached("set", '{"x_a":"alice"}'), "cache.set" },
    { "set with an empty name", cached("set", '{"":"alice"}'), "cache.set" },
    { "set with a space in a name", cached("set", '{"x a":"alice"}'), "cache.set" },
    { "set with a colon in a name", cached("set", '{"x:a":"alice"}'), "cache.set" },
    { "set with CR", cached("set", '{"x-a":"alice\\rb"}'), "cache.set" },
    { "set with LF", cached("set", '{"x-a":"alice\\nb"}'), "cache.set" },
    { "set with NUL", cached("set", '{"x-a":"alice\\u0000b"}'), "cache.set" },
    { "set with an empty value", cached("set", '{"x-a":""}'), "cache.set" },
    { "set with a number", cached("set", '{"x-a":1}'), "cache.set" },
    { "set with null", cached("set", '{"x-a":null}'), "cache.set" },
    { "set with a list", cached("set", '{"x-a":["alice"]}'), "cache.set" },
    { "set of the decision itself", cached("set", '{"x-kube-coders-upstream":"a"}'), "cache.set" },
    { "set of content-length", cached("set", '{"content-length":"1"}'), "cache.set" },
    { "remove missing", cached("remove", nil), "cache.remove" },
    { "remove null", cached("remove", "null"), "cache.remove" },
    { "remove an object", cached("remove", '{"x-a":true}'), "cache.remove" },
    { "remove with a capital", cached("remove", '["X-A"]'), "cache.remove" },
    { "remove with an underscore", cached("remove", '["x_a"]'), "cache.remove" },
    { "remove with null", cached("remove", "[null]"), "cache.remove" },
    { "remove of content-length", cached("remove", '["content-length"]'), "cache.remove" },
    { "cookies missing", cached("cookies", nil), "cache.cookies" },
    { "cookies null", cached("cookies", "null"), "cache.cookies" },
    { "cookies a text", cached("cookies", '"session"'), "cache.cookies" },
    { "cookies with an empty name", cached("cookies", '[""]'), "cache.cookies" },
    { "cookies with a space", cached("cookies", '["a b"]'), "cache.cookies" },
    { "cookies with `=`", cached("cookies", '["a="]'), "cache.cookies" },
    { "cookies with `;`", cached("cookies", '["a;"]'), "cache.cookies" },
    { "cookies with 129 names", cached("cookies", '["a"' .. (',"a"'):rep(128) .. "]"), "cache.cookies" },
}

-- Decisions at the edge of what is good.
local GOOD = {
    { "unknown fields", field("more", '{"alice":[null]}') },
    { "port 1", field("port", "1") },
    { "port 65535", field("port", "65535") },
    { "a port written as a fraction", field("port", "8443.0") },
    { "eight addresses", field("addresses", '["10.0.0.1"' .. (',"10.0.0.1"'):rep(7) .. "]") },
    { "an IPv4 address in IPv6", field("addresses", '["::ffff:10.0.0.1"]') },
    { "a host of one letter", field("host", '"a"') },
    { "a host with underscores", field("host", '"_code_.a_b"') },
    { "a host that is a number and more", field("host", '"10.code"') },
    { "a host of 253 bytes", field("host", '"' .. ("a"):rep(63) .. ("." .. ("a"):rep(63)):rep(2)
        .. "." .. ("b"):rep(61) .. '"') },
    { "a host with three hyphens", field("host", '"code-alice---0123456789abcdef.ns"') },
    { "an address for a host", field("host", '"10.0.0.1"') },
    { "times with fractions", field("timeout", '{"connect":0.001,"send":0.5,"read":86400}') },
    { "what let an older plugin cache it",
        field("remember", '10,"by":["host"],"set":{"x-a":"1"},"remove":[],"cookies":[]') },
    { "a short time", cached("seconds", "0.25") },
    { "a very short time", cached("seconds", "1e-9") },
    { "empty lists", decision.text(decision.cacheable({ headers = {}, remove = {}, cookies = {}, set = {} })) },
    { "32 names in headers", cached("headers", '["a"' .. (',"a"'):rep(31) .. "]") },
    { "a whole alphabet of cookies", cached("cookies", '["!#$%&\'*+-.^_`|~09azAZ"]') },
    { "16 KiB", (decision.text(decision.of({ more = "" })):gsub('"more":""', function()
        return '"more":"' .. ("x"):rep(16384 - #decision.text(decision.of({ more = "" }))) .. '"'
    end)) },
    { "in another order, with spaces", (field("v", "1"):gsub("{", "{ ", 1)) },
}

return function(case)
    assert(#CASES > 100)
    for _, malformed in ipairs(CASES) do
        case("malformed: " .. malformed[1], function()
            local outcome = stand_in.serve(stand_in.worker(), { remember = 10, runner = decision.runner(malformed[2]) })
            expect.refused(outcome, malformed[3], SECRETS)
            expect.same(outcome.conf, nil, "the upstream")
            expect.same(rawget(outcome.headers, "x-kube-coders-upstream"), nil)
        end)
    end
    for _, good in ipairs(GOOD) do
        case("good: " .. good[1], function()
            local outcome = stand_in.serve(stand_in.worker(), { remember = 10, runner = decision.runner(good[2]) })
            expect.same(outcome.status, nil, "the status")
            expect.same(outcome.went_to.is_routes_own, false)
        end)
    end
end
