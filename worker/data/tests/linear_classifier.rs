//! The built-in set asks for more than a linear classifier on pixels can give.

use lockstep_data::{Dataset, InMemory, Split, shapes};
use lockstep_proto::recipe;

const CLASSES: usize = 10;

fn images(dataset: &InMemory, split: Split) -> Vec<(Vec<f32>, usize)> {
    (0..dataset.samples(split).len())
        .map(|sample| {
            let mut image = vec![0.0; 32 * 32 * 3];
            dataset.image(split, sample, None, &mut image).expect("an image that is in memory");
            (image, dataset.label(split, sample) as usize)
        })
        .collect()
}

fn scores(weights: &[Vec<f32>], image: &[f32]) -> [f32; CLASSES] {
    std::array::from_fn(|class| {
        let lanes = weights[class].chunks_exact(8).zip(image.chunks_exact(8)).fold([0.0_f32; 8], |mut sum, (w, x)| {
            (0..8).for_each(|lane| sum[lane] += w[lane] * x[lane]);
            sum
        });
        lanes.iter().sum::<f32>() + weights[class][image.len()]
    })
}

fn error(weights: &[Vec<f32>], images: &[(Vec<f32>, usize)]) -> f64 {
    let wrong = images.iter().filter(|(image, label)| {
        let scores = scores(weights, image);
        (0..CLASSES).any(|class| class != *label && scores[class] >= scores[*label])
    });
    wrong.count() as f64 / images.len() as f64
}

#[test]
fn softmax_regression_on_shapes_stays_above_an_error_of_0_4() {
    let data = recipe::Data { limit: 5_000, test_limit: 1_000, ..Default::default() };
    let (train, test) = shapes::generate(&data);
    let dataset = InMemory::new("shapes", shapes::NUM_CLASSES, train, test, &data);
    let (train, test) = (images(&dataset, Split::Train), images(&dataset, Split::Test));
    // the last weight is the bias; plain SGD, the best of all epochs on the test set itself: an optimist's figure
    let mut weights = vec![vec![0.0_f32; 32 * 32 * 3 + 1]; CLASSES];
    let mut best = 1.0_f64;
    for epoch in 0..12 {
        let rate = 3e-4 / (1.0 + epoch as f32);
        for (image, label) in &train {
            let scores = scores(&weights, image);
            let highest = scores.into_iter().fold(f32::MIN, f32::max);
            let exponentials = scores.map(|score| (score - highest).exp());
            let sum: f32 = exponentials.iter().sum();
            for class in 0..CLASSES {
                let gradient = exponentials[class] / sum - f32::from(u8::from(class == *label));
                for (weight, x) in weights[class].iter_mut().zip(image.iter().chain([&1.0])) {
                    *weight -= rate * gradient * x;
                }
            }
        }
        best = best.min(error(&weights, &test));
    }
    println!("linear classifier on shapes: training error {:.3}, best test error {best:.3}", error(&weights, &train));
    assert!(error(&weights, &train) < 0.8, "it did not learn, so it shows nothing");
    assert!(best > 0.40, "test error {best}");
}
