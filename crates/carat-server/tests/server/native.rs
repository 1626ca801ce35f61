//! Gemma 4's own format on every API: calls of tools, their results, thoughts; and that calls are always valid.

use carat_text::{ChatTemplate, Message, RenderOptions, Role, Tool, ToolCall};
use serde_json::{Value, json};

use crate::common::{CHAOS, Client, gemma4};
use crate::fake::tokenizer;

const TWO_CALLS: &str = "I look.<|tool_call>call:weather{city:<|\"|>Zürich, \"old\" {town}<|\"|>,unit:<|\"|>C<|\"|>}<tool_call|>\
                         <|tool_call>call:weather{city:<|\"|>Oslo<|\"|>,unit:<|\"|>F<|\"|>}<tool_call|>";

fn weather() -> Value {
    json!({
        "type": "object",
        "properties": {"unit": {"enum": ["C", "F"]}, "city": {"type": "string", "maxLength": 30}},
        "required": ["city", "unit"],
    })
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "weather", "description": "Now", "parameters": weather()}}])
}

fn with(base: Value, change: Value) -> Value {
    let mut body = base;
    body.as_object_mut()
        .unwrap()
        .extend(change.as_object().unwrap().clone());
    body
}

fn chat(change: Value) -> Value {
    let base = json!({"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 300});
    with(base, change)
}

async fn ask(client: &Client, change: Value) -> Value {
    client.post("/v1/chat/completions", chat(change)).await.json()
}

#[tokio::test]
async fn calls_are_read_whole_and_as_they_come() {
    let client = gemma4(TWO_CALLS);
    let answer = ask(&client, json!({"tools": tools()})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    assert_eq!(choice["message"]["content"], "I look.");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    let arguments = |call: &Value| -> Value {
        serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap()
    };
    let expected = json!({"city": "Zürich, \"old\" {town}", "unit": "C"});
    assert_eq!(arguments(&calls[0]), expected);
    assert_eq!(arguments(&calls[1]), json!({"city": "Oslo", "unit": "F"}));
    assert_ne!(calls[0]["id"], calls[1]["id"]);

    // The prompt is the template's, tools and all.
    let declared = [Tool {
        name: "weather".into(),
        description: Some("Now".into()),
        parameters: weather(),
    }];
    let options = RenderOptions {
        tools: &declared,
        ..RenderOptions::default()
    };
    let messages = [Message::text(Role::User, "Hi")];
    let ids = ChatTemplate::gemma4(false)
        .encode(&tokenizer(), &messages, options)
        .unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"], ids.len());

    let told = client
        .post(
            "/v1/chat/completions",
            chat(json!({"tools": tools(), "stream": true})),
        )
        .await;
    let (mut text, mut read) = (String::new(), vec![String::new(); 2]);
    for event in told.events() {
        let delta = &event["choices"][0]["delta"];
        text.push_str(delta["content"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            read[index].push_str(call["function"]["arguments"].as_str().unwrap_or_default());
        }
    }
    assert_eq!(text, "I look.");
    assert_eq!(serde_json::from_str::<Value>(&read[0]).unwrap(), expected);

    // One call at most, and half of one is none.
    let one = ask(&client, json!({"tools": tools(), "parallel_tool_calls": false})).await;
    let message = &one["choices"][0]["message"];
    assert_eq!(message["tool_calls"].as_array().unwrap().len(), 1, "{one}");
    for max_tokens in 8..=30 {
        let cut = ask(&client, json!({"tools": tools(), "max_tokens": max_tokens})).await;
        let choice = &cut["choices"][0];
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(choice["message"]["content"], "I look.", "{cut}");
        assert!(
            choice["message"].get("tool_calls").is_none_or(Value::is_null),
            "{cut}"
        );
    }
}

/// Schemas of real tools say more than a grammar can. Unless they are strict, that much is left out.
#[tokio::test]
async fn what_a_grammar_cannot_say_of_a_tool_is_left_out() {
    let client = gemma4("No.");
    let parameters = json!({"type": "object", "required": ["tags", "name"], "properties": {
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": true, "minItems": 1, "maxItems": 2},
        "name": {"type": "string", "pattern": "^(?!x)[a-z]{2}$", "format": "made-up", "maxLength": 4},
        "map": {"type": "object", "propertyNames": {"pattern": "^[a-z]$"}, "additionalProperties": false},
    }});
    let tool = |strict: Value| json!({"type": "function", "function": {"name": "f", "parameters": parameters, "strict": strict}});
    for strict in [Value::Null, json!(false)] {
        let answer = ask(
            &client,
            json!({"tools": [tool(strict)], "tool_choice": "required", "max_tokens": 300}),
        )
        .await;
        let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
        assert!(call["arguments"].is_string(), "{answer}");
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert!(
            ["a", "b"].contains(&arguments["tags"][0].as_str().unwrap()),
            "{arguments}"
        );
        assert!(
            arguments["name"].as_str().unwrap().chars().count() <= 4,
            "{arguments}"
        );
    }
    let refused = ask(
        &client,
        json!({"tools": [tool(json!(true))], "tool_choice": "required"}),
    )
    .await;
    assert_eq!(refused["error"]["param"], "tools", "{refused}");
}

#[tokio::test]
async fn the_choice_of_tools_binds_the_answer() {
    let client = gemma4("No.");
    let call = |answer: &Value| answer["choices"][0]["message"]["tool_calls"][0]["function"].clone();
    let plain = ask(&client, json!({"tools": tools()})).await;
    assert_eq!(plain["choices"][0]["message"]["content"], "No.", "{plain}");
    let named = json!({"type": "function", "function": {"name": "weather"}});
    for choice in [json!("required"), named] {
        let answer = ask(
            &client,
            json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": false}),
        )
        .await;
        assert_eq!(call(&answer)["name"], "weather", "{answer}");
        let arguments: Value = serde_json::from_str(call(&answer)["arguments"].as_str().unwrap()).unwrap();
        assert!(
            ["C", "F"].contains(&arguments["unit"].as_str().unwrap()),
            "{arguments}"
        );
    }
    // Nobody waits for a call: its mark cannot come.
    let client = gemma4(TWO_CALLS);
    for change in [
        json!({"tools": tools(), "tool_choice": "none", "max_tokens": 20}),
        json!({"max_tokens": 20}),
    ] {
        let answer = ask(&client, change).await;
        let message = &answer["choices"][0]["message"];
        assert!(
            message["content"].as_str().unwrap().starts_with("I look."),
            "{answer}"
        );
        assert!(message.get("tool_calls").is_none_or(Value::is_null), "{answer}");
    }
    // A schema binds what is no call.
    let client = gemma4("{\"a\": 1}");
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let answer = ask(&client, json!({"tools": tools(), "response_format": format})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "{\"a\": 1}");
    let answer = ask(&client, json!({"tools": tools(), "guided_regex": "a"})).await;
    assert_eq!(answer["error"]["param"], "tools");
}

#[tokio::test]
async fn other_apis_call_too() {
    let client = gemma4(TWO_CALLS);
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let tool = json!({"name": "weather", "input_schema": weather()});
    let body = json!({"messages": messages, "max_tokens": 300, "temperature": 0, "tools": [tool]});
    let answer = client.post("/v1/messages", body.clone()).await.json();
    assert_eq!(answer["stop_reason"], "tool_use", "{answer}");
    assert_eq!(answer["content"][0]["text"], "I look.");
    assert_eq!(
        answer["content"][2]["input"],
        json!({"city": "Oslo", "unit": "F"})
    );
    let told = client
        .post("/v1/messages", with(body, json!({"stream": true})))
        .await;
    let events = told.events();
    let parts: String = events
        .iter()
        .filter(|event| event["index"] == 2)
        .filter_map(|event| event["delta"]["partial_json"].as_str())
        .collect();
    assert_eq!(serde_json::from_str::<Value>(&parts).unwrap()["city"], "Oslo");

    let body =
        json!({"messages": messages, "tools": tools(), "stream": false, "options": {"temperature": 0}});
    let answer = client.post("/api/chat", body).await.json();
    assert_eq!(
        answer["message"]["tool_calls"][1]["function"]["arguments"],
        json!({"city": "Oslo", "unit": "F"}),
        "{answer}"
    );

    let flat = json!([{"type": "function", "name": "weather", "parameters": weather()}]);
    let body = json!({"input": "Hi", "tools": flat, "temperature": 0});
    let answer = client.post("/v1/responses", body).await.json();
    assert_eq!(answer["output"][2]["name"], "weather", "{answer}");
}

#[tokio::test]
async fn results_are_written_where_they_belong() {
    let client = gemma4("It is sunny.");
    let call = |id: &str, city: &str| {
        let arguments = json!({"city": city, "unit": "C"}).to_string();
        json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}})
    };
    let result = |id: &str, text: &str| json!({"role": "tool", "tool_call_id": id, "content": text});
    let history = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [call("a", "Rome"), call("b", "Oslo")]},
        result("b", "rain"), result("a", "sun"),
    ]);
    let answer = ask(&client, json!({"messages": history, "tools": tools()})).await;
    assert_eq!(
        answer["choices"][0]["message"]["content"], "It is sunny.",
        "{answer}"
    );

    let mut called = Message::text(Role::Assistant, "");
    called.reasoning = Some("hm".into());
    called.tool_calls = [("a", "Rome"), ("b", "Oslo")]
        .map(|(id, city)| ToolCall {
            id: id.into(),
            name: "weather".into(),
            arguments: json!({"city": city, "unit": "C"}),
        })
        .to_vec();
    let answered = |id: &str, text: &str| Message {
        tool_call_id: Some(id.into()),
        name: Some("weather".into()),
        ..Message::text(Role::Tool, text)
    };
    let messages = [
        Message::text(Role::User, "Hi"),
        called,
        answered("b", "rain"),
        answered("a", "sun"),
    ];
    let declared = [Tool {
        name: "weather".into(),
        description: Some("Now".into()),
        parameters: weather(),
    }];
    let options = RenderOptions {
        tools: &declared,
        ..RenderOptions::default()
    };
    let ids = ChatTemplate::gemma4(false)
        .encode(&tokenizer(), &messages, options)
        .unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"], ids.len());

    // Ollama's clients name no call.
    let body = json!({"messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome", "unit": "C"}}}]},
        {"role": "tool", "content": "sun"},
    ], "stream": false, "options": {"temperature": 0}});
    let answer = client.post("/api/chat", body).await.json();
    assert_eq!(answer["message"]["content"], "It is sunny.", "{answer}");

    let user = json!({"role": "user", "content": "Hi"});
    let made = json!({"role": "assistant", "tool_calls": [call("a", "Rome")]});
    for (messages, path) in [
        (json!([user, made, result("c", "sun")]), "messages[2]"),
        (json!([user, result("a", "sun")]), "messages[1]"),
        (json!([user, made]), "messages[1]"),
        (json!([user, made, user]), "messages[1]"),
    ] {
        let answer = ask(&client, json!({"messages": messages})).await;
        assert_eq!(answer["error"]["param"], path, "{answer}");
    }
}

#[tokio::test]
async fn thoughts_are_free_and_end_in_time() {
    let client = gemma4("<|channel>thought\nhm hm<channel|>{\"a\": 7}");
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let body = json!({"response_format": format, "reasoning_effort": "high"});
    let answer = ask(&client, body.clone()).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(
        (&message["reasoning_content"], &message["content"]),
        (&json!("hm hm"), &json!("{\"a\": 7}"))
    );
    assert!(
        answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
            .as_u64()
            .unwrap()
            >= 13
    );

    // The channel's name has eight tokens here.
    let answer = ask(&client, with(body, json!({"thinking_budget": 9}))).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "h", "{answer}");
    let content: Value = serde_json::from_str(message["content"].as_str().unwrap()).unwrap();
    assert!(content["a"].is_number(), "{answer}");

    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100, "temperature": 0,
        "thinking": {"type": "enabled", "budget_tokens": 10}});
    let answer = client.post("/v1/messages", body).await.json();
    assert_eq!(
        answer["content"][0],
        json!({"type": "thinking", "thinking": "hm", "signature": ""})
    );

    // A call behind thoughts, and text that a stop string might have begun with.
    let client = gemma4(&format!("<|channel>thought\nab<channel|>{TWO_CALLS}"));
    let body = json!({"tools": tools(), "reasoning_effort": "low", "stop": ["b}", "w\"", "k.x"]});
    let answer = ask(&client, body).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(
        (&message["reasoning_content"], &message["content"]),
        (&json!("ab"), &json!("I look."))
    );
    assert_eq!(message["tool_calls"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_text() {
    let client = gemma4(&format!("<|channel>thought\nab<channel|>{TWO_CALLS}"));
    let wants = json!({"logprobs": true, "reasoning_effort": "low"});
    let texts = |content: &Value| -> String {
        let tokens = content.as_array().into_iter().flatten();
        tokens.map(|token| token["token"].as_str().unwrap()).collect()
    };
    let answer = ask(&client, with(wants.clone(), json!({"tools": tools()}))).await;
    assert_eq!(
        texts(&answer["choices"][0]["logprobs"]["content"]),
        "I look.",
        "{answer}"
    );
    let body = chat(with(wants, json!({"stream": true, "tools": tools()})));
    let reply = client.post("/v1/chat/completions", body).await;
    let events = reply.events();
    let streamed: String = events
        .iter()
        .map(|event| texts(&event["choices"][0]["logprobs"]["content"]))
        .collect();
    assert_eq!(streamed, "I look.");
    // Without tools thoughts are no text either.
    let plain = gemma4("<|channel>thought\nab<channel|>So.");
    let answer = ask(&plain, json!({"logprobs": true, "reasoning_effort": "low"})).await;
    assert_eq!(
        texts(&answer["choices"][0]["logprobs"]["content"]),
        "So.",
        "{answer}"
    );
}

/// What each of these schemas says is small enough to be looked at by hand.
#[tokio::test]
async fn whatever_the_model_wants_calls_are_valid() {
    let client = gemma4(CHAOS);
    let small = json!({"type": "string", "maxLength": 3});
    let is_small = |value: &Value| value.as_str().is_some_and(|text| text.chars().count() <= 3);
    type Check<'a> = Box<dyn Fn(&Value) -> bool + 'a>;
    let checks: Vec<(Value, Check<'_>)> = vec![
        (
            json!({"properties": {"b": small, "A": {"type": "boolean"}, "c": {"type": ["integer", "null"]}}, "required": ["c"]}),
            Box::new(|value| {
                let fields = value.as_object().unwrap();
                fields.keys().all(|key| ["A", "b", "c"].contains(&key.as_str()))
                    && (fields["c"].is_i64() || fields["c"].is_null())
                    && fields.get("b").is_none_or(is_small)
                    && fields.get("A").is_none_or(Value::is_boolean)
            }),
        ),
        (
            json!({"properties": {"l": {"type": "array", "items": {"enum": ["x", 3, null, {"k": [1, "y"]}]}, "minItems": 2, "maxItems": 4}}, "required": ["l"]}),
            Box::new(|value| {
                let items = value["l"].as_array().unwrap();
                let known = [json!("x"), json!(3), Value::Null, json!({"k": [1, "y"]})];
                (2..=4).contains(&items.len()) && items.iter().all(|item| known.contains(item))
            }),
        ),
        (
            json!({"$defs": {"T": {"type": "object", "properties": {"v": {"const": 1}, "next": {"anyOf": [{"$ref": "#/$defs/T"}, {"type": "null"}]}}, "required": ["v", "next"]}},
                "properties": {"t": {"$ref": "#/$defs/T"}}, "required": ["t"]}),
            Box::new(|value| {
                let mut at = &value["t"];
                while at.is_object() {
                    assert_eq!(at["v"], 1);
                    at = &at["next"];
                }
                at.is_null()
            }),
        ),
        (
            json!({"properties": {"d": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}, "n": {"type": "integer", "minimum": 3, "maximum": 12}}, "required": ["d", "n"]}),
            Box::new(|value| {
                let date = value["d"].as_str().unwrap();
                date.len() == 7
                    && date.as_bytes()[4] == b'-'
                    && (3..=12).contains(&value["n"].as_i64().unwrap())
            }),
        ),
        (
            json!({"$defs": {"P": {"type": "string", "pattern": "^[ab]$"}}, "properties": {"p": {"$ref": "#/$defs/P"}, "odd key:": small}, "required": ["p", "odd key:"]}),
            Box::new(|value| {
                ["a", "b"].contains(&value["p"].as_str().unwrap()) && is_small(&value["odd key:"])
            }),
        ),
        (
            json!({"properties": {"m": {"type": "object", "additionalProperties": small}}, "required": ["m"], "maxProperties": 1}),
            Box::new(|value| value["m"].as_object().unwrap().values().all(is_small)),
        ),
        (json!({}), Box::new(|value| value.as_object().unwrap().is_empty())),
        (
            json!({"properties": {"l": {"type": "array", "items": {"type": "boolean"}, "maxItems": 1}}, "required": ["l"]}),
            Box::new(|value| value["l"].as_array().unwrap().len() <= 1),
        ),
        (
            json!({"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}}}),
            Box::new(|value| value["a"].is_boolean()),
        ),
        (
            json!({"anyOf": [{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
                {"type": "object", "properties": {"b": {"const": 2}}, "required": ["b"]}]}),
            Box::new(|value| value["a"] == 1 || value["b"] == 2),
        ),
    ];
    let mut n_whole = 0;
    for (schema, check) in &checks {
        for seed in 0..6 {
            let tool = json!({"type": "function", "function": {"name": "f", "parameters": schema}});
            let body = json!({"tools": [tool], "tool_choice": "required", "seed": seed, "temperature": 1,
                "max_tokens": 500, "parallel_tool_calls": seed % 2 == 0});
            let answer = ask(&client, body).await;
            let choice = &answer["choices"][0];
            assert!(choice.is_object(), "{schema} {answer}");
            for call in choice["message"]["tool_calls"].as_array().into_iter().flatten() {
                let text = call["function"]["arguments"].as_str().unwrap();
                let arguments: Value = serde_json::from_str(text).unwrap();
                assert!(check(&arguments), "{schema} {text}");
                n_whole += 1;
            }
        }
    }
    // Some strings and maps go on until there is no room.
    assert!(n_whole >= checks.len() * 6 * 2 / 3, "{n_whole}");
}

#[tokio::test]
async fn given_values_are_of_the_type_and_exact() {
    let client = gemma4(CHAOS);
    let large = 9_007_199_254_740_993_i64;
    let checks = [
        (
            json!({"type": "string", "enum": ["a", 1, null]}),
            vec![json!("a")],
        ),
        (
            json!({"type": ["integer", "null"], "enum": ["a", 7, null, 1.5]}),
            vec![json!(7), Value::Null],
        ),
        (
            json!({"type": "string", "nullable": true, "enum": ["a", null]}),
            vec![json!("a"), Value::Null],
        ),
        // Some write all choices as texts.
        (json!({"type": "integer", "enum": ["7"]}), vec![json!("7")]),
        (json!({"enum": [large]}), vec![json!(large)]),
        (json!({"const": i64::MIN}), vec![json!(i64::MIN)]),
        (json!({"const": u64::MAX}), vec![json!(u64::MAX)]),
    ];
    for (schema, allowed) in checks {
        let parameters = json!({"type": "object", "properties": {"v": schema, ")": {"type": "boolean"}, "": {"const": 1}},
            "required": ["v", ")", ""]});
        for seed in 0..4 {
            let parameters = if seed % 2 == 0 {
                json!({"type": "object", "properties": {"v": schema}, "required": ["v"]})
            } else if schema.get("enum") == Some(&json!(["7"]))
                || allowed[0].as_f64().is_some_and(|n| n.abs() > 9e15)
            {
                continue;
            } else {
                parameters.clone()
            };
            let tool = json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
            let body = json!({"tools": [tool], "tool_choice": "required", "seed": seed, "temperature": 1,
                "parallel_tool_calls": false});
            let answer = ask(&client, body).await;
            let text = &answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
            let arguments: Value =
                serde_json::from_str(text.as_str().unwrap_or_else(|| panic!("{answer}"))).unwrap();
            assert!(allowed.contains(&arguments["v"]), "{schema} {arguments}");
            if seed % 2 == 1 {
                assert!(arguments[")"].is_boolean() && arguments[""] == 1, "{arguments}");
            }
        }
    }
}

/// Two kilobytes that would be thirty million rules if each of the two kinds were written for itself.
#[tokio::test]
async fn a_kind_named_twice_is_written_once() {
    let client = gemma4(CHAOS);
    let schema = (0..25).fold(
        json!({"type": "boolean"}),
        |inner, _| json!({"type": ["object", "object"], "properties": {"a": inner}, "required": ["a"]}),
    );
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": schema}});
    let body = json!({"tools": [tool], "tool_choice": "required", "max_tokens": 2});
    let answer = ask(&client, body).await;
    assert!(
        answer["choices"][0].is_object() || answer["error"].is_object(),
        "{answer}"
    );
}
