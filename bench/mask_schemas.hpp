// SPDX-License-Identifier: Apache-2.0
//
// JSON Schemas as programs give them to models, each with an answer: what masks are measured on
// (masks.cpp, tests/grammar/real_vocabulary_test.cpp).
#pragma once

namespace bench {

struct MaskSchema {
  const char* name;
  const char* schema;
  const char* answer;  // as the schema's grammar writes it
};

inline constexpr MaskSchema kMaskSchemas[] = {
    {"person",
     R"({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer",
      "minimum": 0, "maximum": 130}, "email": {"type": "string", "format": "email"}},
      "required": ["name", "age"]})",
     R"({"name": "Ada Lovelace", "age": 36, "email": "ada@example.org"})"},
    {"address",
     R"({"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"},
      "zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "country": {"type": "string",
      "minLength": 2, "maxLength": 2}}, "required": ["street", "city", "zip", "country"]})",
     R"({"street": "Rue de l'Église 12", "city": "Strasbourg", "zip": "67000", "country": "FR"})"},
    {"sentiment", R"({"enum": ["positive", "negative", "neutral", "mixed"]})", R"("negative")"},
    {"labels",
     R"({"type": "object", "properties": {"labels": {"type": "array", "items": {"enum": ["bug",
      "feature", "question", "docs", "performance", "security"]}, "maxItems": 4},
      "priority": {"type": "integer", "minimum": 1, "maximum": 5}},
      "required": ["labels", "priority"]})",
     R"({"labels": ["bug", "performance"], "priority": 2})"},
    {"weather",
     R"({"type": "object", "properties": {"location": {"type": "string"}, "unit": {"enum":
      ["celsius", "fahrenheit"]}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
      "required": ["location"]})",
     R"({"location": "東京, Japan", "unit": "celsius", "days": 7})"},
    {"event",
     R"({"type": "object", "properties": {"title": {"type": "string", "maxLength": 120}, "date":
      {"type": "string", "format": "date"}, "time": {"type": "string", "format": "time"},
      "attendees": {"type": "array", "items": {"type": "string"}}}, "required": ["title",
      "date"]})",
     R"({"title": "Review of the quarter's numbers", "date": "2026-03-31", "time": )"
     R"("14:30:00Z", "attendees": ["Kim", "Ana-María", "O'Neill"]})"},
    {"invoice",
     R"({"type": "object", "properties": {"number": {"type": "string", "pattern":
      "^INV-[0-9]{4}-[0-9]{6}$"}, "total": {"type": "number", "minimum": 0}, "currency": {"enum":
      ["EUR", "USD", "GBP", "JPY"]}, "lines": {"type": "array", "items": {"type": "object",
      "properties": {"text": {"type": "string"}, "quantity": {"type": "integer", "minimum": 1},
      "price": {"type": "number"}}, "required": ["text", "quantity", "price"]}}},
      "required": ["number", "total", "currency", "lines"]})",
     R"({"number": "INV-2026-000417", "total": 129.9, "currency": "EUR", "lines": [{"text": )"
     R"("Chair, oak", "quantity": 1, "price": 99.5}, {"text": "Delivery", "quantity": 1, )"
     R"("price": 30.4}]})"},
    {"summary",
     R"({"type": "object", "properties": {"summary": {"type": "string", "minLength": 10,
      "maxLength": 400}, "points": {"type": "array", "items": {"type": "string", "maxLength": 100},
      "minItems": 1, "maxItems": 5}}, "required": ["summary", "points"]})",
     R"({"summary": "The committee postponed the vote, because two of its members had not )"
     R"(seen the final text.", "points": ["vote postponed", "text was late", "new date: May )"
     R"(12"]})"},
    {"tree",
     R"({"$defs": {"node": {"type": "object", "properties": {"value": {"type": "integer"}, "left":
      {"$ref": "#/$defs/node"}, "right": {"$ref": "#/$defs/node"}}, "required": ["value"]}},
      "$ref": "#/$defs/node"})",
     R"({"value": 8, "left": {"value": 3, "right": {"value": 6}}, "right": {"value": 10}})"},
    {"any", "true",
     R"({"a": [1, -2.5e3, true, null, "text \"quoted\" and \u00e9"], "b": {"c": {}}})"},
    {"shape",
     R"({"anyOf": [{"type": "object", "properties": {"kind": {"const": "circle"}, "radius": {"type":
      "number", "minimum": 0}}, "required": ["kind", "radius"]}, {"type": "object", "properties":
      {"kind": {"const": "rectangle"}, "width": {"type": "number"}, "height": {"type": "number"}},
      "required": ["kind", "width", "height"]}]})",
     R"({"kind": "rectangle", "width": 12.25, "height": 7})"},
    {"search",
     R"({"type": "object", "properties": {"query": {"type": "string"}, "filters": {"type": "object",
      "properties": {"after": {"type": "string", "format": "date"}, "site": {"type": "string"},
      "language": {"type": "string", "pattern": "^[a-z]{2}(-[A-Z]{2})?$"}}}, "limit": {"type":
      "integer", "minimum": 1, "maximum": 100}}, "required": ["query"]})",
     R"({"query": "quantized inference on CPUs", "filters": {"after": "2025-01-01", )"
     R"("language": "en-GB"}, "limit": 25})"},
    {"movie",
     R"({"type": "object", "properties": {"title": {"type": "string"}, "year": {"type": "integer",
      "minimum": 1888, "maximum": 2100}, "genres": {"type": "array", "items": {"type": "string"}},
      "rating": {"type": "number", "minimum": 0, "maximum": 10}, "seen": {"type": "boolean"}},
      "required": ["title", "year", "genres", "rating", "seen"]})",
     R"({"title": "Playtime", "year": 1967, "genres": ["comedy", "satire"], "rating": 8.1, )"
     R"("seen": true})"},
    {"quiz",
     R"({"type": "array", "items": {"type": "object", "properties": {"question": {"type": "string"},
      "choices": {"type": "array", "items": {"type": "string"}, "minItems": 4, "maxItems": 4},
      "answer": {"type": "integer", "minimum": 0, "maximum": 3}}, "required": ["question",
      "choices", "answer"]}, "maxItems": 10})",
     R"([{"question": "Which planet is the largest?", "choices": ["Mars", "Jupiter", )"
     R"("Venus", "Saturn"], "answer": 1}])"},
    {"entities",
     R"({"type": "object", "properties": {"people": {"type": "array", "items": {"type": "string"}},
      "places": {"type": "array", "items": {"type": "string"}}, "dates": {"type": "array", "items":
      {"type": "string", "format": "date"}}}, "required": ["people", "places", "dates"]})",
     R"({"people": ["Marie Curie", "Пьер Кюри"], "places": ["Paris", "Warszawa"], "dates": )"
     R"(["1903-12-10"]})"},
    {"ticket",
     R"({"type": "object", "properties": {"id": {"type": "string", "format": "uuid"}, "subject":
      {"type": "string", "maxLength": 80}, "status": {"enum": ["open", "pending", "solved"]},
      "assignee": {"type": ["string", "null"]}}, "required": ["id", "subject", "status",
      "assignee"]})",
     R"({"id": "0f8fad5b-d9cb-469f-a165-70867728950e", "subject": "The printer prints )"
     R"(\"%PDF\" only", "status": "open", "assignee": null})"},
    {"recipe",
     R"({"type": "object", "properties": {"name": {"type": "string"}, "minutes": {"type": "integer",
      "minimum": 1}, "ingredients": {"type": "array", "items": {"type": "object", "properties":
      {"item": {"type": "string"}, "grams": {"type": "number"}}, "required": ["item"]}}, "steps":
      {"type": "array", "items": {"type": "string"}}}, "required": ["name", "ingredients",
      "steps"]})",
     R"({"name": "Crêpes", "minutes": 40, "ingredients": [{"item": "flour", "grams": 250}, )"
     R"({"item": "milk", "grams": 500.5}, {"item": "salt"}], "steps": ["Whisk.", "Rest for )"
     R"(half an hour.", "Bake."]})"},
    {"sensor",
     R"({"type": "object", "properties": {"severity": {"enum": ["info", "warning", "critical"]},
      "sensor": {"type": "string", "pattern": "^[a-z]+_[0-9]{1,3}$"}, "value": {"type": "number"},
      "alert": {"type": "string", "maxLength": 80}}, "required": ["severity", "sensor", "value",
      "alert"]})",
     R"({"severity": "warning", "sensor": "boiler_12", "value": 97.25, "alert": "Water in )"
     R"(boiler 12 is close to boiling; check valve 3."})"},
    {"colors",
     R"({"type": "array", "items": {"type": "string", "pattern": "^#[0-9a-fA-F]{6}$"},
      "minItems": 1, "maxItems": 8})",
     R"(["#ff8800", "#00B2a9", "#123456"])"},
    {"phone",
     R"({"type": "object", "properties": {"phone": {"type": "string", "pattern":
      "^\\+[1-9][0-9]{6,14}$"}, "verified": {"type": "boolean"}}, "required": ["phone"]})",
     R"({"phone": "+4930123456", "verified": false})"},
    {"geo",
     R"({"type": "object", "properties": {"type": {"const": "Point"}, "coordinates": {"type":
      "array", "prefixItems": [{"type": "number", "minimum": -180, "maximum": 180}, {"type":
      "number", "minimum": -90, "maximum": 90}], "items": false, "minItems": 2}}, "required":
      ["type", "coordinates"]})",
     R"({"type": "Point", "coordinates": [13.4125, -52.5]})"},
    {"translation",
     R"({"type": "object", "properties": {"source": {"enum": ["de", "en", "fr", "ja"]}, "target":
      {"enum": ["de", "en", "fr", "ja"]}, "text": {"type": "string"}}, "required": ["source",
      "target", "text"]})",
     R"({"source": "en", "target": "ja", "text": "今日はとても良い天気ですね。散歩に行きましょう。"})"},
    {"commit",
     R"({"type": "object", "properties": {"type": {"enum": ["feat", "fix", "docs", "test",
      "refactor"]}, "scope": {"type": "string", "pattern": "^[a-z-]{1,20}$"}, "subject": {"type":
      "string", "minLength": 5, "maxLength": 72}, "breaking": {"type": "boolean"}}, "required":
      ["type", "subject"]})",
     R"({"type": "fix", "scope": "http-client", "subject": "retry only requests that may be )"
     R"(sent twice", "breaking": false})"},
    {"chess",
     R"({"type": "object", "properties": {"move": {"type": "string", "pattern":
      "^([KQRBN]?[a-h]?[1-8]?x?[a-h][1-8](=[QRBN])?|O-O(-O)?)[+#]?$"}, "reason": {"type":
      "string", "maxLength": 200}}, "required": ["move"]})",
     R"({"move": "Nbd7+", "reason": "It develops and covers f6."})"},
    {"map", R"({"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}})",
     R"({"apples": 3, "Äpfel": 12, "new\nline": 0})"},
    {"config",
     R"({"type": "object", "properties": {"host": {"type": "string", "format": "hostname"}, "port":
      {"type": "integer", "minimum": 1, "maximum": 65535}, "address": {"type": "string", "format":
      "ipv4"}, "tls": {"type": "object", "properties": {"on": {"type": "boolean"}, "ciphers":
      {"type": "array", "items": {"type": "string"}}}, "required": ["on"]}}, "required": ["host",
      "port"]})",
     R"({"host": "db-1.example.org", "port": 5432, "address": "10.0.0.17", "tls": {"on": )"
     R"(true, "ciphers": ["TLS_AES_128_GCM_SHA256"]}})"},
    {"score",
     R"({"type": "object", "properties": {"reasoning": {"type": "string"}, "score": {"type":
      "integer", "minimum": -10, "maximum": 10}}, "required": ["reasoning", "score"]})",
     R"({"reasoning": "The answer is right,\nbut its second step has no source.", "score": -3})"},
    {"timestamps",
     R"({"type": "object", "properties": {"start": {"type": "string", "format": "date-time"}, "end":
      {"type": "string", "format": "date-time"}, "zone": {"type": "string"}}, "required": ["start",
      "end"]})",
     R"({"start": "2026-11-27T09:00:00Z", "end": "2026-11-27T10:30:00.250+01:00", "zone": )"
     R"("Europe/Berlin"})"},
    {"product",
     R"({"type": "object", "properties": {"sku": {"type": "string", "pattern":
      "^[A-Z]{3}[0-9]{5}$"}, "name": {"type": "string", "minLength": 1, "maxLength": 60}, "tags":
      {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 20}, "dimensions":
      {"type": "object", "properties": {"w": {"type": "number"}, "h": {"type": "number"}, "d":
      {"type": "number"}}, "required": ["w", "h", "d"], "additionalProperties": false}},
      "required": ["sku", "name"], "additionalProperties": false})",
     R"({"sku": "LMP00042", "name": "Lamp, brass, E27", "tags": ["lamp", "living room"], )"
     R"("dimensions": {"w": 21.5, "h": 48, "d": 21.5}})"},
    {"chain",
     R"({"type": "object", "properties": {"steps": {"type": "array", "items": {"type": "object",
      "properties": {"explanation": {"type": "string"}, "output": {"type": "string"}}, "required":
      ["explanation", "output"], "additionalProperties": false}}, "final_answer": {"type":
      "string"}}, "required": ["steps", "final_answer"], "additionalProperties": false})",
     R"({"steps": [{"explanation": "Subtract 7 on both sides.", "output": "8x = -30"}, )"
     R"({"explanation": "Divide by 8.", "output": "x = -3.75"}], "final_answer": "x = -3.75"})"},
    {"calls",
     R"({"anyOf": [{"type": "object", "properties": {"name": {"const": "get_weather"}, "arguments":
      {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
      "required": ["name", "arguments"]}, {"type": "object", "properties": {"name": {"const":
      "set_alarm"}, "arguments": {"type": "object", "properties": {"time": {"type": "string",
      "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}, "days": {"type": "array", "items": {"enum":
      ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]}}}, "required": ["time"]}}, "required":
      ["name", "arguments"]}]})",
     R"({"name": "set_alarm", "arguments": {"time": "06:45", "days": ["mon", "wed", "fri"]}})"},
    {"patient",
     R"({"type": "object", "properties": {"born": {"type": "string", "format": "date"}, "sex":
      {"enum": ["f", "m", "x", null]}, "weight_kg": {"type": "number", "exclusiveMinimum": 0,
      "maximum": 500}, "allergies": {"type": "array", "items": {"type": "string"}}, "notes": {"type":
      "string", "maxLength": 1000}}, "required": ["born", "sex"]})",
     R"({"born": "1957-02-28", "sex": null, "weight_kg": 71.5, "allergies": [], "notes": )"
     R"("Complains of a dry cough since Monday; no fever (37.1 °C)."})"},
    {"sql",
     R"({"type": "object", "properties": {"sql": {"type": "string"}, "parameters": {"type": "array",
      "items": {"type": ["string", "number", "boolean", "null"]}}}, "required": ["sql",
      "parameters"]})",
     R"({"sql": "SELECT name, count(*) FROM \"orders\" WHERE day > ? GROUP BY 1", )"
     R"("parameters": ["2026-01-01", 12.5, true, null]})"},
};

}  // namespace bench
