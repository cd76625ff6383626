-- SPDX-License-Identifier: Apache-2.0
-- Decisions that are none. Each is refused, and nothing of it is logged.
local decision = require("decision")
local expect = require("expect")
local stand_in = require("stand_in")

-- What stands in good decisions and may not be logged.
local SECRETS = { "alice", "10.0.0.1", "8443", "session", "x-userinfo", "x-access-token", "svc" }

-- A decision's text with one piece of it in other words.
local function edited(from, to, is_lasting)
    local text = decision.text(is_lasting and decision.lasting() or decision.of())
    local at, till = text:find(from, 1, true)
    assert(at, from)
    return text:sub(1, at - 1) .. to .. text:sub(till + 1)
end

local function field(name, json, is_lasting)
    local fields = is_lasting and decision.lasting() or decision.of()
    fields[name] = nil
    local text = decision.text(fields)
    return json and '{"' .. name .. '":' .. json .. "," .. text:sub(2) or text
end

local CASES = {
    -- name, text, and what is logged of it
    { "a space", " ", "no object" },
    { "no JSON", "http://code-alice:8443", "no object" },
    { "half of it", decision.text(decision.of()):sub(1, -2), "no object" },
    { "something behind it", decision.text(decision.of()) .. "x", "no object" },
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
    { "remember 0", field("remember", "0", true), "remember" },
    { "remember below zero", field("remember", "-1", true), "remember" },
    { "remember more than 10", field("remember", "10.1", true), "remember" },
    { "remember not a number", field("remember", "nan", true), "remember" },
    { "remember as a text", field("remember", '"10"', true), "remember" },
    { "remember null", field("remember", "null", true), "remember" },
    { "remember true", field("remember", "true", true), "remember" },
    { "by missing", field("by", nil, true), "by" },
    { "by null", field("by", "null", true), "by" },
    { "by a text", field("by", '"host"', true), "by" },
    { "by an object", field("by", '{"host":"host"}', true), "by" },
    { "by with a capital", field("by", '["Host"]', true), "by" },
    { "by with an underscore", field("by", '["x_userinfo"]', true), "by" },
    { "by with an empty name", field("by", '[""]', true), "by" },
    { "by with a line's end", field("by", '["host\\n"]', true), "by" },
    { "by with a number", field("by", "[1]", true), "by" },
    { "by with null", field("by", '["host",null]', true), "by" },
    { "by with 33 names", field("by", '["a"' .. (',"a"'):rep(32) .. "]", true), "by" },
    { "set missing", field("set", nil, true), "set" },
    { "set null", field("set", "null", true), "set" },
    { "set a text", field("set", '"x-a"', true), "set" },
    { "set a list", field("set", '["x-a"]', true), "set" },
    { "set with a capital", field("set", '{"X-A":"alice"}', true), "set" },
    { "set with an underscore", field("set", '{"x_a":"alice"}', true), "set" },
    { "set with an empty name", field("set", '{"":"alice"}', true), "set" },
    { "set with a space in a name", field("set", '{"x a":"alice"}', true), "set" },
    { "set with a colon in a name", field("set", '{"x:a":"alice"}', true), "set" },
    { "set with CR", field("set", '{"x-a":"alice\\rb"}', true), "set" },
    { "set with LF", field("set", '{"x-a":"alice\\nb"}', true), "set" },
    { "set with NUL", field("set", '{"x-a":"alice\\u0000b"}', true), "set" },
    { "set with an empty value", field("set", '{"x-a":""}', true), "set" },
    { "set with a number", field("set", '{"x-a":1}', true), "set" },
    { "set with null", field("set", '{"x-a":null}', true), "set" },
    { "set with a list", field("set", '{"x-a":["alice"]}', true), "set" },
    { "set of the decision itself", field("set", '{"x-kube-coders-upstream":"a"}', true), "set" },
    { "set of content-length", field("set", '{"content-length":"1"}', true), "set" },
    { "remove missing", field("remove", nil, true), "remove" },
    { "remove null", field("remove", "null", true), "remove" },
    { "remove an object", field("remove", '{"x-a":true}', true), "remove" },
    { "remove with a capital", field("remove", '["X-A"]', true), "remove" },
    { "remove with an underscore", field("remove", '["x_a"]', true), "remove" },
    { "remove with null", field("remove", "[null]", true), "remove" },
    { "remove of content-length", field("remove", '["content-length"]', true), "remove" },
    { "cookies missing", field("cookies", nil, true), "cookies" },
    { "cookies null", field("cookies", "null", true), "cookies" },
    { "cookies a text", field("cookies", '"session"', true), "cookies" },
    { "cookies with an empty name", field("cookies", '[""]', true), "cookies" },
    { "cookies with a space", field("cookies", '["a b"]', true), "cookies" },
    { "cookies with `=`", field("cookies", '["a="]', true), "cookies" },
    { "cookies with `;`", field("cookies", '["a;"]', true), "cookies" },
    { "cookies with 65 names", field("cookies", '["a"' .. (',"a"'):rep(64) .. "]", true), "cookies" },
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
    { "fields of the memory without remember", field("remember", nil, true) },
    { "a short remember", field("remember", "0.25", true) },
    { "empty lists", decision.text(decision.lasting({ by = {}, remove = {}, cookies = {}, set = {} })) },
    { "32 names in by", field("by", '["a"' .. (',"a"'):rep(31) .. "]", true) },
    { "a whole alphabet of cookies", field("cookies", '["!#$%&\'*+-.^_`|~09azAZ"]', true) },
    { "16 KiB", (decision.text(decision.of({ more = "" })):gsub('"more":""', function()
        return '"more":"' .. ("x"):rep(16384 - #decision.text(decision.of({ more = "" }))) .. '"'
    end)) },
    { "in another order, with spaces", edited("{", "{ ") },
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
