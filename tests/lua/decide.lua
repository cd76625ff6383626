-- SPDX-License-Identifier: Apache-2.0
-- Reads the value of a decision's header from standard input, sends one request where it says, and prints
-- what came of it as JSON: an object with `key`, `version`, `conf` and `headers`, or {"status":503}. An
-- argument is the conf's `remember`. Run from the project's root: luajit tests/lua/decide.lua < decision
package.path = "tests/lua/?.lua;" .. package.path
local stand_in = require("stand_in")

local decision = io.read("*a"):gsub("\r?\n$", "")
local outcome = stand_in.serve(stand_in.worker(), {
    remember = tonumber(arg[1] or "0"),
    headers = {
        { "Host", "coders.example.com" },
        { "Cookie", "a=1; session=x; session_2=y; b=2" },
        { "X-Access-Token", "token" },
        { "X-Userinfo", "eyJzdWIiOiJhbGljZSJ9" },
        { "X-Forwarded-User", "mallory" },
        { "User-Agent", "test" },
    },
    runner = function(ctx, set_header) set_header(ctx, "x-kube-coders-upstream", decision) end,
})

if outcome.status then
    for _, line in ipairs(stand_in.log) do io.stderr:write(line.level, ": ", line.text, "\n") end
    print(stand_in.cjson.encode({ status = outcome.status }))
else
    print(stand_in.cjson.encode({
        key = outcome.key, version = outcome.version, conf = outcome.conf, headers = outcome.headers,
    }))
end
