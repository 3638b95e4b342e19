//! Properties of quantization args: they survive JSON, and no JSON makes the reader panic.

use compressed_tensors::{
    DType,
    args::{ActivationOrdering, ArgsBuilder, Dynamic, QuantizationArgs, QuantizationStrategy, QuantizationType},
};
use proptest::{option, prelude::*, sample::select};
use serde_json::{Map, Value, json};

fn drafts() -> impl Strategy<Value = ArgsBuilder> {
    let dtypes = || option::of(select(vec![DType::U8, DType::I8, DType::I32, DType::F8E4M3, DType::BF16]));
    let strategies = option::of(select(QuantizationStrategy::ALL.to_vec()));
    let orders = select(vec![ActivationOrdering::Weight, ActivationOrdering::Static]);
    let dynamics = select(vec![Dynamic::No, Dynamic::Yes, Dynamic::Local]);
    let kind = (0..20_i64, any::<bool>(), any::<bool>());
    let sharing = (strategies, option::of(-1..40_i64), option::of((1..300_usize, 1..300_usize)), dynamics);
    (kind, sharing, option::of(orders), dtypes(), dtypes(), option::of("[a-z_]{0,8}"), any::<bool>()).prop_map(
        |((bits, float, symmetric), (strategy, group, block, dynamic), order, scale, zp, observer, kwargs)| {
            let mut draft = if float { ArgsBuilder::float(bits) } else { ArgsBuilder::int(bits) }.dynamic(dynamic);
            draft = if symmetric { draft } else { draft.asymmetric() };
            draft = block.into_iter().fold(draft, |it, (rows, columns)| it.block(rows, columns));
            draft = strategy.into_iter().fold(draft, ArgsBuilder::strategy);
            draft = group.into_iter().fold(draft, ArgsBuilder::group_size);
            draft = order.into_iter().fold(draft, ArgsBuilder::actorder);
            draft = scale.into_iter().fold(draft, ArgsBuilder::scale_dtype);
            draft = zp.into_iter().fold(draft, ArgsBuilder::zp_dtype);
            draft = observer.into_iter().fold(draft, ArgsBuilder::observer);
            let map = Map::from_iter([("maxshrink".to_owned(), json!(0.2))]);
            if kwargs { draft.observer_kwargs(map) } else { draft }
        },
    )
}

fn json_values() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        select(vec!["", "int", "FLOAT", "group", "local", "128x128", "torch.int8", "x", "9"]).prop_map(Value::from),
        prop::collection::vec(any::<i8>().prop_map(Value::from), 0..3).prop_map(Value::from),
        Just(json!({})),
    ]
}

const FIELDS: [&str; 12] = [
    "num_bits",
    "type",
    "symmetric",
    "group_size",
    "strategy",
    "block_structure",
    "dynamic",
    "actorder",
    "scale_dtype",
    "zp_dtype",
    "observer",
    "observer_kwargs",
];

proptest! {
    #[test]
    fn args_come_back_from_json_but_for_the_zero_point_type_of_symmetric_ones(draft in drafts()) {
        let Ok(args) = draft.build() else { return Ok(()) };
        let json = args.to_json();
        prop_assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), FIELDS);
        let unstored = args.symmetric && args.r#type == QuantizationType::Float && ![4, 8].contains(&args.num_bits);
        match QuantizationArgs::from_json(&json) {
            Ok(mut back) => {
                prop_assert!(!unstored);
                prop_assert_eq!(&back.to_json(), &json);
                if args.symmetric {
                    back.zp_dtype = args.zp_dtype;
                }
                prop_assert_eq!(back, args);
            }
            Err(error) => prop_assert!(unstored, "{}", error),
        }
    }

    #[test]
    fn no_json_makes_the_reader_panic_and_what_it_takes_it_also_writes(
        fields in prop::collection::vec((select(FIELDS.to_vec()), json_values()), 0..4),
    ) {
        let map: Map<String, Value> = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let lenient = QuantizationArgs::from_checkpoint_json(&Value::Object(map.clone()));
        if let Ok(args) = QuantizationArgs::from_json(&Value::Object(map)) {
            prop_assert_eq!(lenient.unwrap(), args);
        }
    }
}
