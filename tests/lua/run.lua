-- SPDX-License-Identifier: Apache-2.0
-- Tests of apisix-conf/plugins/kube-coders-upstream.lua. Run from the project's root:
-- luajit tests/lua/run.lua
package.path = "tests/lua/?.lua;" .. package.path

local passed, failed = 0, 0

local function case(name, test)
    local ok, why = pcall(test)
    passed, failed = passed + (ok and 1 or 0), failed + (ok and 0 or 1)
    -- What a case throws may have any bytes in it.
    print(ok and "ok - " .. name or "not ok - " .. name .. ": " .. tostring(why):gsub("[^ -~]", "?"))
end

local CASES = {
    "header", "malformed", "destination", "changes", "response", "hidden_lines", "cache", "cache_keys", "failure",
}
for _, name in ipairs(CASES) do
    local before = passed + failed
    require("cases." .. name)(case)
    if passed + failed == before then
        case(name, function() error("it has no cases") end)
    end
end

print(("%d passed, %d failed"):format(passed, failed))
os.exit((failed == 0 and passed > 0) and 0 or 1)
